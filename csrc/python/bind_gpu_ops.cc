// Bindings of the GPU engine's ops: addresses, sizes and a stream are integers, which mmn_fast/kernels/gpu/*_ops.py has
// checked. A negative device means host memory and runs the twin.
#include <pybind11/stl.h>

#include <cstdint>
#include <vector>

#include "common/check.h"
#include "cuda/launch.h"
#include "python/bind.h"

namespace py = pybind11;

namespace mmn_fast {
namespace {

using namespace py::literals;  // "name"_a

template <class T>
T* pointer(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

#if defined(MMN_FAST_WITH_CUDA)
#define MMN_RUN(op, ...)                                                  \
  do {                                                                     \
    const py::gil_scoped_release released;                                 \
    if (device < 0) {                                                      \
      twin_##op(__VA_ARGS__);                                              \
    } else {                                                               \
      launch_##op(__VA_ARGS__, device, pointer<void>(stream));                    \
    }                                                                      \
  } while (false)
#else
#define MMN_RUN(op, ...)                                                                 \
  do {                                                                                    \
    MMN_CHECK(device < 0, #op ": this build of mmn_fast has no CUDA kernels");            \
    static_cast<void>(stream);                                                            \
    const py::gil_scoped_release released;                                                \
    twin_##op(__VA_ARGS__);                                                               \
  } while (false)
#endif

Dtype dtype_of(int number) {
  MMN_CHECK(number >= 0 && number <= 2, "dtype: expected 0 (float32), 1 (float16) or 2 (bfloat16), got ", number);
  return static_cast<Dtype>(number);
}

void feature_pool(uintptr_t features, uintptr_t starts, uintptr_t ends, uintptr_t norms, uintptr_t out, int64_t rows,
                  int64_t pre_clips, const std::vector<int>& streams, int dtype, int device, uintptr_t stream) {
  MMN_CHECK(!streams.empty() && streams.size() <= kMostStreams, "streams: expected 1 to ", kMostStreams, ", got ",
            streams.size());
  FeaturePoolArgs args = {};
  args.features = pointer<const float>(features);
  args.starts = pointer<const int32_t>(starts);
  args.ends = pointer<const int32_t>(ends);
  args.norms = pointer<float>(norms);
  args.out = pointer<void>(out);
  args.rows = rows;
  args.pre_clips = pre_clips;
  for (const int width : streams) {
    args.width += width;
    args.stream_ends[args.streams++] = static_cast<int32_t>(args.width);
  }
  args.dtype = dtype_of(dtype);
  MMN_RUN(feature_pool, args);
}

void clip_pool(uintptr_t products, uintptr_t bias, uintptr_t out, int64_t videos, int64_t pre_clips, int64_t channels,
               int64_t clips, int64_t kernel, int64_t stride, int dtype, int device, uintptr_t stream) {
  const ClipPoolArgs args = {pointer<const void>(products), pointer<const float>(bias), pointer<void>(out), videos,
                             pre_clips, channels, clips, kernel, stride, dtype_of(dtype)};
  MMN_RUN(clip_pool, args);
}

void sparse_max_pool(uintptr_t clips, uintptr_t positions, uintptr_t map, int64_t n, int64_t videos, int64_t channels,
                int dtype, int device, uintptr_t stream) {
  const SparseMaxPoolArgs args = {pointer<const void>(clips), pointer<const int32_t>(positions), pointer<void>(map), n,
                              videos, channels, dtype_of(dtype)};
  MMN_RUN(sparse_max_pool, args);
}

void conv_epilogue(uintptr_t products, uintptr_t bias, uintptr_t weights, uintptr_t positions, uintptr_t out,
                   int64_t videos, int64_t cells, int64_t channels, int64_t cell_stride, int64_t video_stride, int dtype,
                   int device, uintptr_t stream) {
  const ConvEpilogueArgs args = {pointer<const void>(products),
                                 pointer<const float>(bias),
                                 pointer<const float>(weights),
                                 pointer<const int32_t>(positions),
                                 pointer<void>(out),
                                 videos,
                                 cells,
                                 channels,
                                 cell_stride,
                                 video_stride,
                                 dtype_of(dtype)};
  MMN_RUN(conv_epilogue, args);
}

void check_spectra(int n, int dtype) {
  MMN_CHECK(n == 12 || n == 16 || n == 24, "n: expected 12, 16 or 24, got ", n);
  MMN_CHECK(dtype_of(dtype) != Dtype::kBfloat16, "dtype: expected float32 or float16, got bfloat16");
}

void fourier_tiles(uintptr_t rows, uintptr_t inputs, uintptr_t spectra, int64_t tiles, int64_t videos, int64_t channels,
                   int n, int dtype, int device, uintptr_t stream) {
  check_spectra(n, dtype);
  const FourierTilesArgs args = {pointer<const void>(rows), pointer<const int32_t>(inputs), pointer<void>(spectra), tiles,
                                 videos, channels, n, dtype_of(dtype)};
  MMN_RUN(fourier_tiles, args);
}

void fourier_cells(uintptr_t spectra, uintptr_t outputs, uintptr_t bias, uintptr_t cell_weights, uintptr_t out,
                   int64_t tiles, int64_t videos, int64_t channels, int n, int m, int dtype, int device, uintptr_t stream) {
  check_spectra(n, dtype);
  const FourierCellsArgs args = {pointer<const void>(spectra),
                                 pointer<const int32_t>(outputs),
                                 pointer<const float>(bias),
                                 pointer<const float>(cell_weights),
                                 pointer<void>(out),
                                 tiles,
                                 videos,
                                 channels,
                                 n,
                                 m,
                                 dtype_of(dtype)};
  MMN_RUN(fourier_cells, args);
}

void heads(uintptr_t products, uintptr_t bias, uintptr_t contrastive, uintptr_t iou, int64_t proposals, int64_t videos,
           int64_t joint, int dtype, int device, uintptr_t stream) {
  const HeadsArgs args = {pointer<const void>(products), pointer<const float>(bias), pointer<void>(contrastive),
                          pointer<void>(iou), proposals, videos, joint, dtype_of(dtype)};
  MMN_RUN(heads, args);
}

void pair_scores(uintptr_t video_contrastive, uintptr_t video_iou, uintptr_t text_contrastive, uintptr_t text_iou,
                 uintptr_t pair_videos, uintptr_t pair_sentences, uintptr_t fused, uintptr_t contrastive, uintptr_t iou,
                 int64_t pairs, int64_t proposals, int64_t joint, float power, bool product, int dtype, int device,
                 uintptr_t stream) {
  const PairScoresArgs args = {pointer<const void>(video_contrastive),
                               pointer<const void>(video_iou),
                               pointer<const void>(text_contrastive),
                               pointer<const void>(text_iou),
                               pointer<const int32_t>(pair_videos),
                               pointer<const int32_t>(pair_sentences),
                               pointer<float>(fused),
                               pointer<float>(contrastive),
                               pointer<float>(iou),
                               pairs,
                               proposals,
                               joint,
                               power,
                               product,
                               dtype_of(dtype)};
  MMN_RUN(pair_scores, args);
}

void pair_top_moments(uintptr_t fused, uintptr_t cells, uintptr_t durations, uintptr_t keys, uintptr_t chosen,
                  uintptr_t chosen_scores, int64_t pairs, int64_t proposals, int64_t top_k, float clips,
                  float iou_threshold, int device, uintptr_t stream) {
  MMN_CHECK(top_k >= 1, "top_k: expected at least 1, got ", top_k);
  const PairTopMomentsArgs args = {pointer<const float>(fused),
                                pointer<const int32_t>(cells),
                                pointer<const float>(durations),
                                pointer<uint32_t>(keys),
                                pointer<int32_t>(chosen),
                                pointer<float>(chosen_scores),
                                pairs,
                                proposals,
                                top_k,
                                clips,
                                iou_threshold};
  MMN_RUN(pair_top_moments, args);
}

void temporal_nms(uintptr_t scores, uintptr_t moments, uintptr_t keys, uintptr_t out, int64_t queries, int64_t cells,
                  int64_t top_k, float iou_threshold, int device, uintptr_t stream) {
  const TemporalNmsArgs args = {pointer<const float>(scores), pointer<const float>(moments), pointer<int32_t>(out),
                                queries, cells, top_k, iou_threshold};
  MMN_RUN(temporal_nms, args, pointer<uint32_t>(keys));
}

}  // namespace

void register_gpu_ops(py::module_& m) {
  const char* doc = "See csrc/ops/gpu; called by the operators in mmn_fast/kernels/gpu.";
  m.def("gpu_feature_pool", &feature_pool, doc, "features"_a, "starts"_a, "ends"_a, "norms"_a, "out"_a, "rows"_a,
        "pre_clips"_a, "streams"_a, "dtype"_a, "device"_a, "stream"_a);
  m.def("gpu_clip_pool", &clip_pool, doc, "products"_a, "bias"_a, "out"_a, "videos"_a, "pre_clips"_a, "channels"_a,
        "clips"_a, "kernel"_a, "stride"_a, "dtype"_a, "device"_a, "stream"_a);
  m.def("gpu_sparse_max_pool", &sparse_max_pool, doc, "clips"_a, "positions"_a, "map"_a, "n"_a, "videos"_a,
        "channels"_a, "dtype"_a, "device"_a, "stream"_a);
  m.def("gpu_conv_epilogue", &conv_epilogue, doc, "products"_a, "bias"_a, "weights"_a, "positions"_a, "out"_a,
        "videos"_a, "cells"_a, "channels"_a, "cell_stride"_a, "video_stride"_a, "dtype"_a, "device"_a, "stream"_a);
  m.def("gpu_fourier_tiles", &fourier_tiles, doc, "rows"_a, "inputs"_a, "spectra"_a, "tiles"_a, "videos"_a,
        "channels"_a, "n"_a, "dtype"_a, "device"_a, "stream"_a);
  m.def("gpu_fourier_cells", &fourier_cells, doc, "spectra"_a, "outputs"_a, "bias"_a, "cell_weights"_a, "out"_a,
        "tiles"_a, "videos"_a, "channels"_a, "n"_a, "m"_a, "dtype"_a, "device"_a, "stream"_a);
  m.def("gpu_heads", &heads, doc, "products"_a, "bias"_a, "contrastive"_a, "iou"_a, "proposals"_a, "videos"_a,
        "joint"_a, "dtype"_a, "device"_a, "stream"_a);
  m.def("gpu_pair_scores", &pair_scores, doc, "video_contrastive"_a, "video_iou"_a, "text_contrastive"_a, "text_iou"_a,
        "pair_videos"_a, "pair_sentences"_a, "fused"_a, "contrastive"_a, "iou"_a, "pairs"_a, "proposals"_a, "joint"_a,
        "power"_a, "product"_a, "dtype"_a, "device"_a, "stream"_a);
  m.def("gpu_pair_top_moments", &pair_top_moments, doc, "fused"_a, "cells"_a, "durations"_a, "keys"_a, "chosen"_a,
        "chosen_scores"_a, "pairs"_a, "proposals"_a, "top_k"_a, "clips"_a, "iou_threshold"_a, "device"_a, "stream"_a);
  m.def("gpu_temporal_nms", &temporal_nms, doc, "scores"_a, "moments"_a, "keys"_a, "out"_a, "queries"_a, "cells"_a,
        "top_k"_a, "iou_threshold"_a, "device"_a, "stream"_a);
}

}  // namespace mmn_fast
