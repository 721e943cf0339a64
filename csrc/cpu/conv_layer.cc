#include "cpu/conv_layer.h"

#include <algorithm>
#include <cstring>

#include "common/check.h"
#include "common/parallel.h"
#include "cpu/isa/kernel_table.h"
#include "cpu/row_layout.h"

namespace mmn_fast {
namespace {

// Rows of a direct layer in one block, which goes through all taps: its sums (1 MB at 512 channels) stay in the
// second-level cache, and the weights are read once per block.
constexpr int64_t kDirectRows = 2 * kRowBlock;

constexpr int64_t kSplitColumns = 32;

// Rounds to the nearest bf16, ties to even; weights are finite.
uint16_t round_to_bf16(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

float from_bf16(uint16_t x) {
  const uint32_t bits = static_cast<uint32_t>(x) << 16;
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

ConvLayerArgs without_weights(ConvLayerArgs layer) {
  layer.weight = nullptr;
  return layer;
}

float* thread_pack(int64_t size) {
  thread_local FloatBuffer buffer;
  return buffer.grow(size);
}

}  // namespace

ConvLayer::ConvLayer(const ConvLayerArgs& layer, const CpuKernels& kernels)
    : kernels_(&kernels),
      c_in_(layer.c_in),
      c_out_(layer.c_out),
      width_(padded_width(layer.c_out)),
      cells_in_(layer.cells_in),
      cells_(layer.cells),
      relu_(layer.relu),
      terms_a_(layer.terms_a),
      terms_b_(layer.terms_b) {
  MMN_CHECK(!split() || kernels.gemm_split_f32 != nullptr, "isa: expected one with bf16 products, ",
            names(bf16_isas(false), " or "), ", for split terms");
  std::fill_n(bias_.grow(width_), width_, 0.0f);
  std::copy_n(layer.bias, c_out_, bias_.data());
  if (layer.cell_weights != nullptr) cell_weights_.assign(layer.cell_weights, layer.cell_weights + cells_);
  if (layer.weight == nullptr) return;
  weights_.grow(layer.taps * matrix_size());
  for (int64_t tap = 0; tap < layer.taps; ++tap) {
    pack_panels(layer.weight + tap, nullptr, c_in_ * layer.taps, layer.taps, 0, c_out_,
                weights_.data() + tap * matrix_size());
  }
  if (layer.neighbours == nullptr) return;
  taps_.resize(layer.taps);
  for (int64_t cell = 0; cell < cells_; ++cell) {
    for (int64_t tap = 0; tap < layer.taps; ++tap) {
      const int32_t input = layer.neighbours[cell * layer.taps + tap];
      if (input < 0) continue;
      taps_[tap].outputs.push_back(static_cast<int32_t>(cell));
      taps_[tap].inputs.push_back(input);
    }
  }
}

ConvLayer::ConvLayer(const ConvLayerArgs& layer, const CellRunsArgs& runs, const CpuKernels& kernels)
    : ConvLayer(without_weights(layer), kernels) {
  MMN_CHECK(kernels.run_products != nullptr, "isa: expected one with bf16 tiles, ",
            names(bf16_isas(true), " or "), ", for runs of cells");
  num_taps_ = layer.taps;
  run_stride_ = runs.stride;
  slots_.assign(runs.slots, runs.slots + runs.num_slots);
  weights_.grow(layer.taps * matrix_size());
  for (int64_t tap = 0; tap < layer.taps; ++tap) {
    pack_split_panels(layer.weight + tap, nullptr, c_in_ * layer.taps, layer.taps, 0, c_out_, weights_.data(), tap,
                      layer.taps);
  }
  for (int64_t tile = 0; tile < runs.tiles; tile += 2) {
    RunPair& pair = run_pairs_.emplace_back();
    for (int64_t side = 0; side < 2; ++side) {
      const int32_t* cells = runs.outputs + (tile + side) * kRunCells;
      pair.cells[side] = static_cast<int32_t>(std::find(cells, cells + kRunCells, -1) - cells);
      std::copy_n(cells, kRunCells, pair.outputs[side]);
    }
    pair.first = static_cast<int32_t>(run_taps_.size());
    const bool *left = runs.tile_taps + tile * layer.taps, *right = left + layer.taps;
    const auto list = [&](bool with_left, bool with_right) {
      int32_t count = 0;
      for (int64_t tap = 0; tap < layer.taps; ++tap) {
        if (left[tap] != with_left || right[tap] != with_right) continue;
        const int32_t offset = runs.tap_offsets[tap];
        run_taps_.push_back({static_cast<int32_t>(tap), runs.starts[tile] + offset, runs.starts[tile + 1] + offset});
        ++count;
      }
      return count;
    };
    pair.both = list(true, true);
    pair.left_only = list(true, false);
    pair.right_only = list(false, true);
  }
}

ConvLayer::ConvLayer(const ConvLayerArgs& layer, const TilingArgs& tiling, const CpuKernels& kernels)
    : ConvLayer(layer, kernels) {
  MMN_ASSERT(layer.weight == nullptr);
  tile_ = tiling.tile;
  m_ = tiling.m;
  tiles_ = tiling.tiles;
  spectral_ = tiling.spectral;
  bt_.assign(tiling.bt, tiling.bt + tile_ * tile_);
  at_.assign(tiling.at, tiling.at + m_ * tile_);
  tile_inputs_.assign(tiling.inputs, tiling.inputs + tiles_ * tile_ * tile_);
  tile_outputs_.assign(tiling.outputs, tiling.outputs + tiles_ * m_ * m_);
  const int64_t size = points() * matrix_size();
  std::fill_n(weights_.grow(size), size, 0.0f);
}

int64_t ConvLayer::points() const { return tile_ * tile_; }

int64_t ConvLayer::panel_columns() const { return split() ? kSplitColumns : kernels_->gemm_columns; }

int64_t ConvLayer::matrix_size() const {
  return split() ? padded_width(c_in_) * width_ * terms_b_ / 2 : c_in_ * width_;
}

void ConvLayer::multiply(GemmArgs& gemm, bool complex, int64_t first_panel, int64_t last_panel) const {
  gemm.terms_a = terms_a_;
  gemm.terms_b = terms_b_;
  const auto real_kernel = split() ? kernels_->gemm_split_f32 : kernels_->gemm_f32;
  const auto complex_kernel = split() ? kernels_->gemm_complex_split_f32 : kernels_->gemm_complex_f32;
  (complex ? complex_kernel : real_kernel)(gemm, first_panel, last_panel);
}

// Like pack_panels, in steps of 32 k: [panel][step][place][column / 16][k / 2 % 16][column % 16][k % 2].
void ConvLayer::pack_split_panels(const float* matrix, const float* imaginary, int64_t channel_step, int64_t k_step,
                                  int64_t first, int64_t channels, float* packed, int64_t place, int64_t places) const {
  constexpr int64_t kStep = 32, kTile = 512;
  const int64_t real = imaginary == nullptr ? kSplitColumns : kSplitColumns / 2;
  const int64_t end = std::min(padded_width(first + channels), width_) * kSplitColumns / real;
  const int64_t steps = padded_width(c_in_) / kStep;
  auto* const to = reinterpret_cast<uint16_t*>(packed);
  for (int64_t column = first * kSplitColumns / real; column < end; ++column) {
    const int64_t panel = column / kSplitColumns, lane = column % kSplitColumns;
    const int64_t channel = panel * real + lane % real - first;
    const float* source = (lane < real ? matrix : imaginary) + channel * channel_step;
    for (int64_t k = 0; k < steps * kStep; ++k) {
      float rest = k < c_in_ && channel < channels ? source[k * k_step] : 0.0f;
      for (int term = 0; term < terms_b_; ++term) {
        const uint16_t rounded = round_to_bf16(rest);
        rest -= from_bf16(rounded);
        const int64_t tile = ((panel * steps + k / kStep) * places + place + term) * 2 + lane / 16;
        to[tile * kTile + k % kStep / 2 * kStep + lane % 16 * 2 + k % 2] = rounded;
      }
    }
  }
}

// Packs matrix[c * channel_step + k * k_step] into the panels of channels [first, first + channels), and imaginary parts
// into the second half of each panel. Zeros fill the last panel.
void ConvLayer::pack_panels(const float* matrix, const float* imaginary, int64_t channel_step, int64_t k_step,
                            int64_t first, int64_t channels, float* packed) const {
  if (split()) {
    pack_split_panels(matrix, imaginary, channel_step, k_step, first, channels, packed, 0, terms_b_);
    return;
  }
  const int64_t columns = kernels_->gemm_columns, real = imaginary == nullptr ? columns : columns / 2;
  const int64_t end = std::min(padded_width(first + channels), width_) * columns / real;
  for (int64_t column = first * columns / real; column < end; ++column) {
    const int64_t panel = column / columns, lane = column % columns;
    const int64_t channel = panel * real + lane % real - first;
    const float* source = lane < real ? matrix : imaginary;
    float* to = packed + panel * columns * c_in_ + lane;
    for (int64_t k = 0; k < c_in_; ++k) {
      to[k * columns] = channel < channels ? source[channel * channel_step + k * k_step] : 0.0f;
    }
  }
}

void ConvLayer::pack_points(const float* points, int64_t first, int64_t channels, int threads) {
  const int64_t step = channels * c_in_, complex = spectral_ ? kComplexPoints : 0;
  parallel_for(this->points() - complex, threads, [&](int64_t begin, int64_t end) {
    for (int64_t p = begin; p < end; ++p) {
      const int64_t row = p < complex ? 2 * p : p + complex;
      const float* matrix = points + row * step;
      pack_panels(matrix, p < complex ? matrix + step : nullptr, c_in_, 1, first, channels,
                  weights_.data() + row * matrix_size());
    }
  });
}

void ConvLayer::run(const float* in, int64_t in_stride, float* out, int64_t cells, int64_t batch, int threads,
                    ConvScratch& scratch) const {
  if (!run_pairs_.empty()) {
    run_cell_runs(in, in_stride, out, batch, threads, scratch);
  } else if (tile_ == 0) {
    run_direct(in, in_stride, out, cells, batch, threads);
  } else {
    run_tiled(in, in_stride, out, batch, threads, scratch);
  }
}

void ConvLayer::run_direct(const float* in, int64_t in_stride, float* out, int64_t cells, int64_t batch,
                           int threads) const {
  const int64_t columns = panel_columns(), panels = width_ / columns;
  const int64_t block_cells = std::max<int64_t>(1, kDirectRows / batch);
  const int64_t blocks = (cells + block_cells - 1) / block_cells;
  // If there are few blocks, the threads also share each block's columns.
  const int64_t groups = blocks >= 8 * threads ? 1 : std::min<int64_t>(threads, panels);
  parallel_for(blocks * groups, threads, [&](int64_t first_item, int64_t last_item) {
    GemmArgs gemm = {};
    gemm.a = in;
    gemm.a_stride = in_stride;
    gemm.c_stride = width_;
    gemm.c = out;
    gemm.group = batch;
    gemm.k = c_in_;
    gemm.add = true;
    gemm.pack = thread_pack(gemm_pack_size(c_in_));
    for (int64_t item = first_item; item < last_item; ++item) {
      const int64_t first = item % blocks * block_cells, last = std::min(cells, first + block_cells);
      const int64_t group = item / blocks, panel = panels * group / groups, end = panels * (group + 1) / groups;
      float* part = out + panel * columns;
      const int64_t part_width = (end - panel) * columns;
      kernels_->start_rows_f32({part, width_, part_width, bias_.data() + panel * columns}, first * batch,
                               last * batch);
      if (taps_.empty()) {
        gemm.a = in + first * batch * in_stride;
        gemm.c = out + first * batch * width_;
        gemm.rows = (last - first) * batch;
        gemm.b = weights_.data();
        multiply(gemm, false, panel, end);
      }
      for (size_t tap = 0; tap < taps_.size(); ++tap) {
        const auto& outputs = taps_[tap].outputs;
        const auto begin = std::lower_bound(outputs.begin(), outputs.end(), first);
        const auto past = std::lower_bound(begin, outputs.end(), last);
        if (begin == past) continue;
        gemm.c_rows = &*begin;
        gemm.a_rows = taps_[tap].inputs.data() + (begin - outputs.begin());
        gemm.rows = (past - begin) * batch;
        gemm.b = weights_.data() + static_cast<int64_t>(tap) * matrix_size();
        multiply(gemm, false, panel, end);
      }
      if (!relu_ && cell_weights_.empty()) continue;
      const float* cell_weights = cell_weights_.empty() ? nullptr : cell_weights_.data();
      kernels_->finish_rows_f32({part, width_, part_width, cell_weights, batch, relu_}, first * batch, last * batch);
    }
  });
}

void ConvLayer::run_cell_runs(const float* in, int64_t in_stride, float* out, int64_t batch, int threads,
                              ConvScratch& scratch) const {
  const int64_t num_slots = static_cast<int64_t>(slots_.size()), steps = padded_width(c_in_) / kRunStep;
  auto* const inputs = reinterpret_cast<uint16_t*>(scratch.points.grow(batch * steps * num_slots * kRunStep / 2));
  const FillSlotsArgs fill = {in, in_stride, c_in_, slots_.data(), batch, steps, num_slots, inputs};
  parallel_for(num_slots, threads, [&](int64_t first, int64_t last) { kernels_->fill_slots(fill, first, last); });
  const RunProductsArgs all = {inputs, batch, steps, num_slots,
                                    reinterpret_cast<const uint16_t*>(weights_.data()), num_taps_, run_pairs_.data(),
                                    run_taps_.data(), run_stride_, bias_.data(), cell_weights_.data(), relu_, out,
                              width_, nullptr};
  const int64_t panels = width_ / kRunStep, pairs = static_cast<int64_t>(run_pairs_.size());
  // Each thread takes whole panels, so that one thread reads a weight. If panels do not divide evenly, pairs are shared.
  const int64_t groups = panels % threads == 0 ? 1 : std::min<int64_t>(2 * threads, pairs);
  parallel_for(panels * groups, threads, [&](int64_t first, int64_t last) {
    RunProductsArgs products = all;
    products.sums = thread_pack(pairs * kRunSums);
    for (int64_t item = first; item < last; ++item) {
      const int64_t group = item % groups;
      kernels_->run_products(products, item / groups, pairs * group / groups, pairs * (group + 1) / groups);
    }
  });
}

void ConvLayer::run_tiled(const float* in, int64_t in_stride, float* out, int64_t batch, int threads,
                          ConvScratch& scratch) const {
  MMN_ASSERT(batch <= kRowBlock);  // the products replace their operands
  const int64_t blocks = (tiles_ * batch + kRowBlock - 1) / (kRowBlock / batch * batch);
  const int64_t block_tiles = (tiles_ + blocks - 1) / std::max<int64_t>(blocks, 1);
  const int64_t in_width = padded_width(c_in_), slot = std::max(in_width, width_);
  const int64_t point_row = spectral_ ? 2 * slot : slot;
  const int64_t complex = spectral_ ? kComplexPoints : 0;
  const int64_t num_points = spectral_ ? kComplexPoints + kRealPoints : points();
  const int64_t point_stride = block_tiles * batch * point_row + 16;  // no power of two, against set conflicts
  float* const data = scratch.points.grow(num_points * point_stride);
  const int64_t panels = width_ / panel_columns();

  TileTransformArgs forward = {bt_.data(), const_cast<float*>(in), in_stride, nullptr, data, point_stride, point_row,
                               in_width, slot, tile_, m_, batch, nullptr, nullptr, false};
  TileTransformArgs inverse = {at_.data(), out, width_, nullptr, data, point_stride, point_row, width_, slot, tile_,
                               m_, batch, bias_.data(), cell_weights_.data(), relu_};
  for (int64_t first = 0; first < tiles_; first += block_tiles) {
    const int64_t rows = std::min(block_tiles, tiles_ - first) * batch;
    forward.cells = tile_inputs_.data() + first * tile_ * tile_;
    inverse.cells = tile_outputs_.data() + first * m_ * m_;
    parallel_for(rows, threads, [&](int64_t begin, int64_t end) { kernels_->tile_forward_f32(forward, begin, end); });
    parallel_for(num_points, threads, [&](int64_t begin, int64_t end) {
      GemmArgs gemm = {};
      gemm.a_stride = gemm.c_stride = point_row;
      gemm.rows = rows;
      gemm.group = 1;
      gemm.k = c_in_;
      gemm.imaginary_a = gemm.imaginary_c = slot;
      gemm.pack = thread_pack(gemm_pack_size(c_in_));
      for (int64_t p = begin; p < end; ++p) {
        gemm.a = gemm.c = data + p * point_stride;
        gemm.b = weights_.data() + (p < complex ? 2 * p : p + complex) * matrix_size();
        multiply(gemm, p < complex, 0, p < complex ? 2 * panels : panels);
      }
    });
    parallel_for(rows, threads, [&](int64_t begin, int64_t end) { kernels_->tile_inverse_f32(inverse, begin, end); });
  }
}

}  // namespace mmn_fast
