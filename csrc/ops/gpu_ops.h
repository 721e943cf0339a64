// Contracts of the ops that only the GPU engine has; the CPU engine fuses the same steps elsewhere.
//
// Elements of type `dtype` are what the tensor cores read and write; sums, biases and weights are float32. Maps and rows
// are channels-last with the videos minor to the cells: [cells, B, C]. No output overlaps an input, every size may be 0,
// no pointer needs an alignment beyond that of its type (16-byte rows go faster). All arithmetic is float32 without
// contraction, in an order that depends on an item's own sizes alone: a result depends on nothing else in the call.
#pragma once

#include <cstdint>

namespace mmn_fast {

enum class Dtype : int { kFloat32 = 0, kFloat16 = 1, kBfloat16 = 2 };

constexpr int kMostStreams = 4;

// feature_pool: pre-clip t is the mean of rows starts[t] .. ends[t] - 1, each stream of a row divided by its L2 norm
// (at least 1e-12; a stream whose squares overflow is scaled down first).
struct FeaturePoolArgs {
  const float* features;         // [rows, width], the videos' rows one after another
  const int32_t *starts, *ends;  // [pre_clips], rows; starts < ends
  float* norms;                  // [rows, streams, 2], scratch
  void* out;                     // dtype [pre_clips, width]
  int64_t rows, pre_clips, width;
  int32_t stream_ends[kMostStreams];  // columns; the last is `width`
  int streams;
  Dtype dtype;
};

// clip_pool: what follows the product of the 1x1 convolution: bias, ReLU, average over `kernel` pre-clips.
//   out[n, b, c] = mean over k of max(products[b, n * stride + k, c] + bias[c], 0)
struct ClipPoolArgs {
  const void* products;  // dtype [videos, pre_clips, channels]
  const float* bias;     // [channels]
  void* out;             // dtype [clips, videos, channels], clips = (pre_clips - kernel) / stride + 1
  int64_t videos, pre_clips, channels, clips, kernel, stride;
  Dtype dtype;
};

// moment_map: the 2D map of max pools. Cell (i, j), the maximum over clips i..j, goes to row positions[i, j] of `map`;
// where that is -1 nothing is written, so the caller's zeros (the border and the invalid cells) stay. NaN propagates as
// in torch.max_pool1d, of equals the earlier clip stays: -0 and +0 come out as torch's do.
struct MomentMapArgs {
  const void* clips;         // dtype [n, videos, channels]
  const int32_t* positions;  // [n, n], rows of `map`, -1 for none; each row at most once
  void* map;                 // dtype [map rows, videos, channels]
  int64_t n, videos, channels;
  Dtype dtype;
};

// conv_epilogue: what follows a convolution over a box of cells: bias, ReLU, cell weight, and the cells to their places.
//   out[positions[p] * cell_stride + b * video_stride + c] = max(products[b, p, c] + bias[c], 0) * weights[p]
// where positions[p] is not -1; nothing else is written.
struct ConvEpilogueArgs {
  const void* products;      // dtype [videos, cells, channels]
  const float* bias;         // [channels]
  const float* weights;      // [cells]
  const int32_t* positions;  // [cells]
  void* out;                 // dtype
  int64_t videos, cells, channels;
  int64_t cell_stride, video_stride;  // elements
  Dtype dtype;
};

// fourier_tiles: the spectra of the tiles of n x n, n 12, 16 or 24, that cover a map. Their planes are in the order of
// cpu/tile_transform.h, of a complex point the real part and the imaginary one; each is 1/n^2 of the sum over the tile,
// complex ones times the square root of 2: an orthogonal transform over n, so plane F(0, 0) is the tile's mean.
// dtype is float32 or float16.
struct FourierTilesArgs {
  const void* rows;       // dtype [., videos, channels]
  const int32_t* inputs;  // [tiles, n, n], rows under the tile, -1 for zeros
  void* spectra;          // dtype [n * n, tiles, videos, channels]
  int64_t tiles, videos, channels;
  int n;
  Dtype dtype;
};

// fourier_cells: spectra back to the first m x m places of every tile, then bias, ReLU and cell weight.
//   out[cell, b, c] = max(place + bias[c], 0) * cell_weights[cell], cell = outputs[tile, y, x]
// where that is not -1; nothing else is written. Undoes fourier_tiles.
struct FourierCellsArgs {
  const void* spectra;        // dtype [n * n, tiles, videos, channels]
  const int32_t* outputs;     // [tiles, m, m], each cell at most once
  const float* bias;          // [channels]
  const float* cell_weights;  // [cells]
  void* out;                  // dtype [cells, videos, channels]
  int64_t tiles, videos, channels;
  int n, m;  // m 1 to n
  Dtype dtype;
};

// heads: bias and L2 normalisation (norm at least 1e-12) after the product with both heads.
//   contrastive[b, p, :] = normalised(products[p, b, :joint] + bias[:joint]), iou from the other half
struct HeadsArgs {
  const void* products;     // dtype [proposals, videos, 2 joint]
  const float* bias;        // [2 joint]
  void *contrastive, *iou;  // dtype [videos, proposals, joint]
  int64_t proposals, videos, joint;
  Dtype dtype;
};

// pair_scores: both branches' scores of pairs of a video and a sentence, fused. A pair whose video is -1 gets zeros.
//   c = <contrastive>, u = 1 / (1 + exp(-10 <iou>)), fused = product ? c u : max(0.5 c + 0.5, 0)^power u
struct PairScoresArgs {
  const void *video_contrastive, *video_iou;     // dtype [videos, proposals, joint], unit norm
  const void *text_contrastive, *text_iou;       // dtype [sentences, joint], unit norm
  const int32_t *pair_videos, *pair_sentences;   // [pairs]
  float* fused;                                  // [pairs, proposals]
  float *contrastive, *iou;                      // [pairs, proposals], or both null
  int64_t pairs, proposals, joint;
  float power;
  bool product;
  Dtype dtype;
};

// pair_moments: each pair's best proposals after greedy non-maximum suppression, as ops/temporal_nms.h has it. Cell
// (i, j) lasts from i * duration / clips to (j + 1) * duration / clips, each step rounded to float32. NaN is no
// candidate. chosen_scores is 0 where chosen is -1.
struct PairMomentsArgs {
  const float* fused;      // [pairs, proposals]
  const int32_t* cells;    // [proposals, 2]
  const float* durations;  // [pairs], seconds
  uint32_t* keys;          // [pairs, proposals], scratch
  int32_t* chosen;         // [pairs, top_k]
  float* chosen_scores;    // [pairs, top_k]
  int64_t pairs, proposals, top_k;
  float clips;
  float iou_threshold;
};

}  // namespace mmn_fast
