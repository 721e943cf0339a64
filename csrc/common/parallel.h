// The parallel loop over threads; nothing else in csrc uses threads.
#pragma once

#include <cstdint>
#include <type_traits>

namespace mmn_fast {

namespace detail {
void run_parts(int64_t n, int threads, void (*call)(void* context, int64_t first, int64_t last), void* context);
}

// Cuts [0, n) into at most `threads` contiguous parts and calls fn(first, last) once per part, the first part on the
// calling thread; returns when all are done. fn must not throw, and its results must not depend on the cuts.
//
// Workers start at their first use and then sleep between calls. Any thread may call at any time, fn too: a call takes
// the workers that are idle, and without any the loop runs on the calling thread. A forked child starts a new pool.
template <class Fn>
void parallel_for(int64_t n, int threads, Fn&& fn) {
  detail::run_parts(n, threads, [](void* context, int64_t first, int64_t last) {
    (*static_cast<std::remove_reference_t<Fn>*>(context))(first, last);
  }, &fn);
}

}  // namespace mmn_fast
