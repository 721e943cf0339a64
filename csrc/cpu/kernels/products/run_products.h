// Contract of the direct loop over runs of cells: bf16 products whose sums never leave the tiles.
//
// The inputs lie on a grid with a zero border, in steps of 32 channels: [video][step][slot][32]. The cells of a run are a
// fixed number of slots apart, and so are their neighbours under every tap. So a tile product takes up to 16 cells of a
// run and one tap. Two such tiles, which need not be near each other, share each weight that is read.
//
//   out[cell, column] = max(0, bias[column] + sum over steps, taps, k of input * weight) * cell_weights[cell]
//
// Both operands are rounded to bf16. A sum is one float32 chain, by rising steps and within a step by the order of the
// tile's list of taps. So a sum's bits depend neither on the batch nor on threads.
#pragma once

#include <cstdint>

namespace mmn_fast {

constexpr int64_t kRunCells = 16;  // most cells of a tile
constexpr int64_t kRunStep = 32;   // channels of a step, and columns of a panel

// A tap of a pair of tiles: the slot that each tile's first cell reads under the tap.
struct RunTap {
  int32_t tap, left, right;
};

struct RunPair {
  int32_t cells[2];                    // numbers of cells of both tiles; the second may have none
  int32_t outputs[2][kRunCells];       // rows of the layer's cells
  int32_t first;                       // into RunProductsArgs::taps: taps of both tiles, then left alone, right alone
  int32_t both, left_only, right_only;
};

struct RunProductsArgs {
  const uint16_t* inputs;     // bf16 [batch][steps][slots][32]
  int64_t batch, steps, slots;
  const uint16_t* weights;    // bf16 [panel][step][tap][column / 16][k / 2 % 16][column % 16][k % 2]
  int64_t num_taps;
  const RunPair* pairs;
  const RunTap* taps;
  int64_t stride;             // slots from a cell of a run to the next cell
  const float* bias;          // [width]
  const float* cell_weights;  // [cells]
  bool relu;
  float* out;                 // [cells * batch, out_stride], cell-major
  int64_t out_stride;
  float* sums;                // scratch of the calling thread, kRunSums floats per pair
};
constexpr int64_t kRunSums = 2 * kRunCells * kRunStep;

// in [rows * batch, in_stride] float32, row-major -> inputs as above.
struct FillSlotsArgs {
  const float* in;
  int64_t in_stride, channels;
  const int32_t* rows;  // [slots], a row of the input or -1 for zeros
  int64_t batch, steps, slots;
  uint16_t* inputs;
};

}  // namespace mmn_fast
