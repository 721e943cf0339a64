// NumPy arrays in, checked; the GIL is released while the kernels run.
#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <initializer_list>
#include <optional>
#include <string>
#include <vector>

#include "common/check.h"
#include "cpu/cpu_ops.h"
#include "cpu/kernel_table.h"
#include "python/bind.h"

namespace py = pybind11;

namespace mmn_fast {
namespace {

// "float64 [3, 5]"
std::string describe(const py::array& array) {
  std::string text = py::str(array.dtype()).cast<std::string>() + " [";
  for (py::ssize_t d = 0; d < array.ndim(); ++d) text += (d ? ", " : "") + std::to_string(array.shape(d));
  return text + "]";
}

// `expected` is a dtype and the shape in symbols, "float32 [S, P]". Wrong dtype: TypeError; the rest: ValueError.
void check_array(const py::array& array, const char* argument, const char* expected, bool dtype_matches, int ndim,
                 bool written) {
  if (!dtype_matches) throw py::type_error(sentence(argument, ": expected ", expected, ", got ", describe(array)));
  MMN_CHECK(array.ndim() == ndim, argument, ": expected ", expected, ", got ", describe(array));
  MMN_CHECK(array.flags() & py::array::c_style, argument, ": expected C-contiguous ", expected, ", got strided ",
            describe(array));
  MMN_CHECK(!written || array.writeable(), argument, ": expected a writeable array, got a read-only one");
}

template <class T>
void check_array(const py::array& array, const char* argument, const char* expected, int ndim, bool written = false) {
  check_array(array, argument, expected, py::isinstance<py::array_t<T>>(array), ndim, written);
}

// For an array that has passed check_array with ndim = shape.size().
void check_shape(const py::array& array, const char* argument, const char* dtype,
                 std::initializer_list<py::ssize_t> shape) {
  if (std::equal(shape.begin(), shape.end(), array.shape())) return;
  std::string sizes;
  for (py::ssize_t size : shape) sizes += (sizes.empty() ? "" : ", ") + std::to_string(size);
  MMN_CHECK(false, argument, ": expected ", dtype, " [", sizes, "], got ", describe(array));
}

void check_disjoint(const py::array& out, const py::array& input, const char* argument) {
  const auto* out_first = static_cast<const char*>(out.data());
  const auto* input_first = static_cast<const char*>(input.data());
  const bool disjoint = out_first + out.nbytes() <= input_first || input_first + input.nbytes() <= out_first;
  MMN_CHECK(disjoint, "out: expected memory of its own, got memory shared with ", argument);
}

void check_threads(int threads) { MMN_CHECK(threads >= 1, "threads: expected at least 1, got ", threads); }

CpuIsa isa_of(const std::optional<std::string>& word) {
  if (!word) return chosen_cpu_isa();
  const CpuIsa isa = parse_cpu_isa(*word, "isa");
  require_cpu_isa(isa, "isa");
  return isa;
}

void sparse_max_pool(const py::array& clips, const py::array& mask, py::array& out, int threads,
                     const std::optional<std::string>& isa) {
  check_array<float>(clips, "clips", "float32 [B, C, N]", 3);
  const bool mask_dtype = py::isinstance<py::array_t<bool>>(mask) || py::isinstance<py::array_t<uint8_t>>(mask);
  check_array(mask, "mask", "bool or uint8 [N, N]", mask_dtype, 2, false);
  check_array<float>(out, "out", "float32 [B, C, N, N]", 4, true);
  const py::ssize_t B = clips.shape(0), C = clips.shape(1), N = clips.shape(2);
  check_shape(mask, "mask", "bool or uint8", {N, N});
  check_shape(out, "out", "float32", {B, C, N, N});
  check_disjoint(out, clips, "clips");
  check_disjoint(out, mask, "mask");
  check_threads(threads);
  const CpuIsa chosen = isa_of(isa);
  const SparseMaxPoolArgs args = {static_cast<const float*>(clips.data()), static_cast<const uint8_t*>(mask.data()),
                                  static_cast<float*>(out.mutable_data()), B * C, N};
  py::gil_scoped_release released;
  sparse_max_pool_cpu(args, chosen, threads);
}

void temporal_nms(const py::array& scores, const py::array& moments, double iou_threshold, int64_t top_k,
                  py::array& out, int threads, const std::optional<std::string>& isa) {
  check_array<float>(scores, "scores", "float32 [S, P]", 2);
  check_array<float>(moments, "moments", "float32 [P, 2]", 2);
  check_array<int32_t>(out, "out", "int32 [S, top_k]", 2, true);
  MMN_CHECK(iou_threshold >= 0.0 && iou_threshold <= 1.0, "iou_threshold: expected 0 to 1, got ", iou_threshold);
  MMN_CHECK(top_k >= 1, "top_k: expected at least 1, got ", top_k);
  const py::ssize_t S = scores.shape(0), P = scores.shape(1);
  MMN_CHECK(P < INT32_MAX - kScratchPad, "scores: expected fewer than 2^31 - 16 cells, got ", P);
  check_shape(moments, "moments", "float32", {P, 2});
  check_shape(out, "out", "int32", {S, top_k});
  check_disjoint(out, scores, "scores");
  check_disjoint(out, moments, "moments");
  check_threads(threads);
  const CpuIsa chosen = isa_of(isa);
  const TemporalNmsArgs args = {static_cast<const float*>(scores.data()),
                                static_cast<const float*>(moments.data()),
                                static_cast<int32_t*>(out.mutable_data()),
                                S,
                                P,
                                top_k,
                                static_cast<float>(iou_threshold)};
  py::gil_scoped_release released;
  temporal_nms_cpu(args, chosen, threads);
}

}  // namespace

void register_cpu_ops(py::module_& m) {
  m.def("cpu_isa", [] { return std::string(name(chosen_cpu_isa())); },
        "The instruction set in use: MMN_FAST_CPU_ISA (ValueError if unusable), else the best that has kernels.");
  m.def("available_cpu_isas",
        [] {
          std::vector<std::string> names;
          for (CpuIsa isa : available_cpu_isas()) names.emplace_back(name(isa));
          return names;
        },
        "The instruction sets that both this host and this build have, in rising order.");
  m.def("kernel_isas",
        [](const std::optional<std::string>& isa) {
          py::dict sources;
          for (const auto& [op, source] : kernel_isas(isa_of(isa))) sources[py::str(op)] = name(source);
          return sources;
        },
        py::arg("isa") = py::none(),
        "Op name -> the instruction set whose code runs it: a lower one where `isa` has no code of its own.");
  m.def("sparse_max_pool", &sparse_max_pool, py::arg("clips").noconvert(), py::arg("mask").noconvert(),
        py::arg("out").noconvert(), py::arg("threads"), py::arg("isa") = py::none(),
        "Fills out [B, C, N, N] from clips [B, C, N] and mask [N, N]; see csrc/ops/sparse_max_pool.h.");
  m.def("temporal_nms", &temporal_nms, py::arg("scores").noconvert(), py::arg("moments").noconvert(),
        py::arg("iou_threshold"), py::arg("top_k"), py::arg("out").noconvert(), py::arg("threads"),
        py::arg("isa") = py::none(),
        "Fills out [S, top_k] from scores [S, P] and moments [P, 2]; see csrc/ops/temporal_nms.h.");
}

}  // namespace mmn_fast
