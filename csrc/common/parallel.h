// The only user of threads in csrc.
#pragma once

#include <cstdint>
#include <type_traits>

namespace mmn_fast {

namespace detail {
void run_parts(int64_t n, int threads, void (*call)(void* context, int64_t first, int64_t last), void* context);
}

// Calls fn(first, last) on contiguous parts that cover [0, n) exactly once, at most `threads` of them, the first on the
// calling thread; returns when all are done. fn must not throw, and its results must not depend on how [0, n) is cut.
//
// Workers start on first need and then sleep between calls. Any thread may call at any time: when the workers are busy
// with another caller (or fn itself calls parallel_for), the loop runs on the calling thread. A forked child starts
// afresh.
template <class Fn>
void parallel_for(int64_t n, int threads, Fn&& fn) {
  detail::run_parts(n, threads, [](void* context, int64_t first, int64_t last) {
    (*static_cast<std::remove_reference_t<Fn>*>(context))(first, last);
  }, &fn);
}

}  // namespace mmn_fast
