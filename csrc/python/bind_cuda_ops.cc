// Device pointers, sizes and a stream as integers: whoever owns the tensors (kernels/cpu/ops.py, for torch) has checked them.
#include <cstdint>

#include "common/check.h"
#include "cuda/launch.h"
#include "python/bind.h"

namespace py = pybind11;

namespace mmn_fast {
namespace {

template <class T>
T* pointer(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

void cuda_sparse_max_pool(uintptr_t clips, uintptr_t mask, uintptr_t out, int64_t channels, int64_t n, int device,
                          uintptr_t stream) {
  MMN_CHECK(channels >= 0 && n >= 0, "channels, n: expected sizes, got ", channels, " and ", n);
  const SparseMaxPoolArgs args = {pointer<const float>(clips), pointer<const uint8_t>(mask), pointer<float>(out),
                                  channels, n};
  py::gil_scoped_release released;
  launch_sparse_max_pool(args, device, pointer<void>(stream));
}

void cuda_temporal_nms(uintptr_t scores, uintptr_t moments, uintptr_t keys, uintptr_t out, int64_t queries,
                       int64_t cells, int64_t top_k, double iou_threshold, int device, uintptr_t stream) {
  MMN_CHECK(queries >= 0 && queries <= INT32_MAX, "queries: expected 0 to 2^31 - 1, got ", queries);
  MMN_CHECK(cells >= 0 && cells <= INT32_MAX, "cells: expected 0 to 2^31 - 1, got ", cells);
  MMN_CHECK(top_k >= 1, "top_k: expected at least 1, got ", top_k);
  MMN_CHECK(iou_threshold >= 0.0 && iou_threshold <= 1.0, "iou_threshold: expected 0 to 1, got ", iou_threshold);
  const TemporalNmsArgs args = {pointer<const float>(scores),
                                pointer<const float>(moments),
                                pointer<int32_t>(out),
                                queries,
                                cells,
                                top_k,
                                static_cast<float>(iou_threshold)};
  py::gil_scoped_release released;
  launch_temporal_nms(args, pointer<uint32_t>(keys), device, pointer<void>(stream));
}

}  // namespace

void register_cuda_ops(py::module_& m) {
  m.def("cuda_sparse_max_pool", &cuda_sparse_max_pool, py::arg("clips"), py::arg("mask"), py::arg("out"),
        py::arg("channels"), py::arg("n"), py::arg("device"), py::arg("stream"),
        "Launches sparse_max_pool on device memory; see csrc/cuda/launch.h.");
  m.def("cuda_temporal_nms", &cuda_temporal_nms, py::arg("scores"), py::arg("moments"), py::arg("keys"),
        py::arg("out"), py::arg("queries"), py::arg("cells"), py::arg("top_k"), py::arg("iou_threshold"),
        py::arg("device"), py::arg("stream"), "Launches temporal_nms on device memory; see csrc/cuda/launch.h.");
}

}  // namespace mmn_fast
