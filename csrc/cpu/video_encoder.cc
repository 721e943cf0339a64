#include "cpu/video_encoder.h"

#include <algorithm>

#include "common/check.h"
#include "common/parallel.h"
#include "cpu/row_layout.h"

namespace mmn_fast {
namespace {

// Makes a linear map of rows: a layer in which every row is its own only input.
ConvLayer linear(const float* weight, const float* bias, int64_t c_in, int64_t c_out, bool relu,
                 const CpuKernels& kernels) {
  return ConvLayer(ConvLayerArgs{weight, bias, nullptr, nullptr, c_in, c_out, 1, 0, 0, relu}, kernels);
}

int levels_of(int64_t clips) {
  int levels = 1;
  while ((int64_t{1} << levels) <= clips) ++levels;
  return levels;
}

}  // namespace

VideoEncoder::VideoEncoder(std::shared_ptr<ProposalConv> conv, const ClipPoolWeights& clip_pool, const int32_t* cells,
                           const HeadsWeights& heads)
    : VideoEncoder(std::move(conv), clip_pool, std::vector<ConvLayer>(), nullptr, heads) {
  cells_.assign(cells, cells + 2 * conv_->layers().front().cells_in());
  for (size_t n = 0; n < cells_.size(); n += 2) {
    MMN_CHECK(0 <= cells_[n] && cells_[n] <= cells_[n + 1] && cells_[n + 1] < clips_,
              "cells: expected 0 <= i <= j < ", clips_, ", got (", cells_[n], ", ", cells_[n + 1], ")");
  }
}

VideoEncoder::VideoEncoder(std::shared_ptr<ProposalConv> conv, const ClipPoolWeights& clip_pool,
                           std::vector<ConvLayer> map_convs, const int32_t* map_rows, const HeadsWeights& heads)
    : conv_(std::move(conv)),
      clip_pool_(linear(clip_pool.weight, clip_pool.bias, clip_pool.d, clip_pool.c, true, conv_->kernels())),
      heads_(linear(heads.weight, heads.bias, heads.c, 2 * heads.joint_padded, false, conv_->kernels())),
      pre_clips_(clip_pool.pre_clips),
      kernel_(clip_pool.kernel),
      stride_(clip_pool.stride),
      clips_((clip_pool.pre_clips - clip_pool.kernel) / clip_pool.stride + 1),
      joint_(heads.joint),
      joint_padded_(heads.joint_padded),
      map_convs_(std::move(map_convs)) {
  MMN_CHECK(heads.c == conv_->layers().back().c_out(), "heads: expected ", conv_->layers().back().c_out(),
            " input channels, got ", heads.c);
  MMN_CHECK(clip_pool.c == conv_->layers().front().c_in(), "clip_pool: expected ", conv_->layers().front().c_in(),
            " channels, got ", clip_pool.c);
  if (map_rows == nullptr) return;
  map_rows_.assign(map_rows, map_rows + conv_->layers().front().cells_in());
  for (int32_t row : map_rows_) {
    MMN_CHECK(0 <= row && row < clip_rows(), "map_rows: expected rows below ", clip_rows(), ", got ", row);
  }
}

// Rows of the clips' buffer: the clips, then room for their maxima or for learned convolutions.
int64_t VideoEncoder::clip_rows() const {
  if (!cells_.empty()) return clips_ * levels_of(clips_);
  int64_t rows = clips_;
  for (const ConvLayer& layer : map_convs_) rows += layer.cells();
  return rows;
}

void VideoEncoder::run(const float* pre_clips, int64_t batch, float* contrastive, float* iou, int threads) const {
  ConvScratchPool::Lease scratch(conv_->scratch());
  for (int64_t first = 0; first < batch; first += kVideosAtOnce) {
    const int64_t count = std::min(kVideosAtOnce, batch - first), out = first * proposals() * joint_;
    run_some(pre_clips + first * pre_clips_ * input_size(), count, contrastive + out, iou + out, threads, *scratch);
  }
}

void VideoEncoder::run_some(const float* pre_clips, int64_t batch, float* contrastive, float* iou, int threads,
                            ConvScratch& scratch) const {
  const int64_t width = clip_pool_.width();
  const float* rows = conv_->run(batch, threads, scratch, [&](float* map) {
    // The second buffer is free until the first layer writes to it.
    float* projected = scratch.rows[1].grow(batch * pre_clips_ * width);
    float* clips = scratch.clips.grow(clip_rows() * batch * width);
    clip_pool_.run(pre_clips, input_size(), projected, batch * pre_clips_, 1, threads, scratch);
    average(projected, clips, batch, threads);
    cells_.empty() ? convolve_cells(clips, map, batch, threads, scratch) : pool_cells(clips, map, batch, threads);
  });
  const int64_t cells = proposals(), heads_width = heads_.width();
  float* const embedded = scratch.clips.grow(cells * batch * heads_width);
  heads_.run(rows, conv_->layers().back().width(), embedded, cells * batch, 1, threads, scratch);
  parallel_for(cells * batch, threads, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) {
      const int64_t out = (i % batch * cells + i / batch) * joint_;
      conv_->kernels().normalize_row_f32(embedded + i * heads_width, contrastive + out, joint_);
      conv_->kernels().normalize_row_f32(embedded + i * heads_width + joint_padded_, iou + out, joint_);
    }
  });
}

// Averages [batch * T] rows to the first [N * batch] rows of clips.
void VideoEncoder::average(const float* rows, float* clips, int64_t batch, int threads) const {
  const int64_t width = clip_pool_.width();
  parallel_for(clips_ * batch, threads, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) {
      const float* in = rows + (i % batch * pre_clips_ + i / batch * stride_) * width;
      float* out = clips + i * width;
      std::copy_n(in, width, out);
      for (int64_t t = 1; t < kernel_; ++t) {
        for (int64_t c = 0; c < width; ++c) out[c] += in[t * width + c];
      }
      for (int64_t c = 0; c < width; ++c) out[c] /= static_cast<float>(kernel_);
    }
  });
}

// Computes the maximum over clips i..j from two runs of 2^level clips, one that starts at i and one that ends at j. Level
// l of the table holds the runs of 2^l clips. Threads share the columns, because each level needs the previous one.
void VideoEncoder::pool_cells(float* clips, float* out, int64_t batch, int threads) const {
  const int64_t row = batch * clip_pool_.width(), level_size = clips_ * row;
  const auto max_rows = conv_->kernels().max_rows_f32;
  parallel_for(row / kRowPad, threads, [&](int64_t first, int64_t last) {
    const int64_t column = first * kRowPad, width = (last - first) * kRowPad;
    for (int level = 1; level < levels_of(clips_); ++level) {
      const float* runs = clips + (level - 1) * level_size + column;
      for (int64_t i = 0; i + (int64_t{1} << level) <= clips_; ++i) {
        const float* run = runs + i * row;
        max_rows(run, run + (row << (level - 1)), clips + level * level_size + i * row + column, width);
      }
    }
    for (size_t cell = 0; 2 * cell < cells_.size(); ++cell) {
      const int64_t i = cells_[2 * cell], j = cells_[2 * cell + 1];
      const int level = levels_of(j - i + 1) - 1;
      const float* runs = clips + level * level_size + column;
      const int64_t last_run = j + 1 - (int64_t{1} << level);
      max_rows(runs + i * row, runs + last_run * row, out + static_cast<int64_t>(cell) * row + column, width);
    }
  });
}

void VideoEncoder::convolve_cells(float* clips, float* out, int64_t batch, int threads, ConvScratch& scratch) const {
  const int64_t width = clip_pool_.width();
  float* in = clips;
  int64_t in_cells = clips_;
  for (const ConvLayer& layer : map_convs_) {
    float* const result = in + in_cells * batch * width;
    layer.run(in, width, result, layer.cells(), batch, threads, scratch);
    in = result;
    in_cells = layer.cells();
  }
  for (size_t cell = 0; cell < map_rows_.size(); ++cell) {
    std::copy_n(clips + map_rows_[cell] * batch * width, batch * width, out + static_cast<int64_t>(cell) * batch * width);
  }
}

}  // namespace mmn_fast
