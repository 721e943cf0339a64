// Checks of NumPy arrays, for all bindings.
#pragma once

#include <pybind11/numpy.h>

#include <algorithm>
#include <initializer_list>
#include <optional>
#include <string>

#include "common/check.h"
#include "cpu/isa/kernel_table.h"

namespace mmn_fast {

// "float64 [3, 5]"
inline std::string describe(const pybind11::array& array) {
  std::string text = pybind11::str(array.dtype()).cast<std::string>() + " [";
  for (pybind11::ssize_t d = 0; d < array.ndim(); ++d) text += (d ? ", " : "") + std::to_string(array.shape(d));
  return text + "]";
}

// Checks an array. `expected` is a dtype and a shape in symbols, "float32 [S, P]". A wrong dtype raises TypeError, any
// other difference ValueError.
inline void check_array(const pybind11::array& array, const char* argument, const char* expected, bool dtype_matches, int ndim,
                 bool written) {
  if (!dtype_matches) throw pybind11::type_error(sentence(argument, ": expected ", expected, ", got ", describe(array)));
  MMN_CHECK(array.ndim() == ndim, argument, ": expected ", expected, ", got ", describe(array));
  MMN_CHECK(array.flags() & pybind11::array::c_style, argument, ": expected C-contiguous ", expected, ", got strided ",
            describe(array));
  MMN_CHECK(!written || array.writeable(), argument, ": expected a writeable array, got a read-only one");
}

template <class T>
void check_array(const pybind11::array& array, const char* argument, const char* expected, int ndim, bool written = false) {
  check_array(array, argument, expected, pybind11::isinstance<pybind11::array_t<T>>(array), ndim, written);
}

// Checks the shape of an array that has passed check_array with ndim = shape.size().
inline void check_shape(const pybind11::array& array, const char* argument, const char* dtype,
                 std::initializer_list<pybind11::ssize_t> shape) {
  if (std::equal(shape.begin(), shape.end(), array.shape())) return;
  std::string sizes;
  for (pybind11::ssize_t size : shape) sizes += (sizes.empty() ? "" : ", ") + std::to_string(size);
  MMN_CHECK(false, argument, ": expected ", dtype, " [", sizes, "], got ", describe(array));
}

inline void check_disjoint(const pybind11::array& out, const pybind11::array& input, const char* argument) {
  const auto* out_first = static_cast<const char*>(out.data());
  const auto* input_first = static_cast<const char*>(input.data());
  const bool disjoint = out_first + out.nbytes() <= input_first || input_first + input.nbytes() <= out_first;
  MMN_CHECK(disjoint, "out: expected memory of its own, got memory shared with ", argument);
}

inline void check_threads(int threads) { MMN_CHECK(threads >= 1, "threads: expected at least 1, got ", threads); }

inline CpuIsa isa_of(const std::optional<std::string>& word) {
  if (!word) return chosen_cpu_isa();
  const CpuIsa isa = parse_cpu_isa(*word, "isa");
  require_cpu_isa(isa, "isa");
  return isa;
}

}  // namespace mmn_fast
