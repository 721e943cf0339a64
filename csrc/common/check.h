// Two kinds of failure: MMN_CHECK is the caller's fault and becomes a Python ValueError;
// MMN_ASSERT is our bug and stops the process before it can hand out a wrong result.
#pragma once

#include <cstdio>
#include <cstdlib>
#include <sstream>
#include <stdexcept>
#include <string>

namespace mmn_fast {

template <class... Parts>
std::string sentence(const Parts&... parts) {
  std::ostringstream text;
  (text << ... << parts);
  return text.str();
}

}  // namespace mmn_fast

// MMN_CHECK(n > 0, "n: expected a positive number, got ", n): argument, expectation, given value.
#define MMN_CHECK(condition, ...)                                                        \
  do {                                                                                   \
    if (!(condition)) throw std::invalid_argument(::mmn_fast::sentence(__VA_ARGS__));    \
  } while (false)

#define MMN_ASSERT(condition)                                                                   \
  do {                                                                                          \
    if (!(condition)) {                                                                         \
      std::fprintf(stderr, "%s:%d: mmn_fast bug: %s\n", __FILE__, __LINE__, #condition);        \
      std::abort();                                                                             \
    }                                                                                           \
  } while (false)
