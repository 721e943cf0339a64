// Contract of the tile transforms: rows of needed cells to points over square tiles, and back.
//
// Winograd tiles (tile = 8) have the points 0, a, -a, b, -b, c, -c, infinity, in this order.
//
// forward:  points[p][tile * group + b][channel] = (bt x bt^T)[p]   for each tile x of video b; absent inputs are 0
// inverse:  rows of the tile's cells = max(0, at points at^T + bias) * their cell weights
//
// Point p is (y, x) in row-major order: tile * tile real points.
//
// Spectral tiles (tile = 16) do not read their matrices, which are known: bt has 16 rows, cos(2 pi u y / 16) for
// u = 0..8, then sin for u = 1..7. Cosines and sines of both axes combine to kComplexPoints complex points, then
// kRealPoints real points, in this order:
//   for u = 1..7, v = 1..7:  F(u, v), F(u, -v)
//   for v = 1..7:            F(0, v), F(8, v)
//   for u = 1..7:            F(u, 0), F(u, 8)
//   real:                    F(0, 0), F(0, 8), F(8, 0), F(8, 8)
// with F(u, v) = sum over y, x of x[y, x] exp(-2 pi i (u y + v x) / 16). A complex point holds its real parts and,
// `imaginary` floats further, its imaginary parts.
#pragma once

#include <cstdint>

namespace mmn_fast {

constexpr int64_t kSpectralTile = 16, kComplexPoints = 126, kRealPoints = 4;

struct TileTransformArgs {
  const float* matrix;    // forward: bt [tile, tile]; inverse: at [m, tile]
  float* rows;            // forward reads, inverse writes: [cells * group, row_stride]
  int64_t row_stride;
  const int32_t* cells;   // per tile its cells' rows or -1: forward [tile * tile], inverse [m * m]
  float* points;          // [points][point_stride]; each point holds [tile * group + b][point_row]
  int64_t point_stride, point_row;
  int64_t width;          // multiple of kRowPad
  int64_t imaginary;      // spectral: from a real part to its imaginary part
  int64_t tile, m;
  int64_t group;
  const float* bias;          // inverse only: [width]
  const float* cell_weights;  // inverse only: one per cell
  bool relu;                  // inverse only
};

}  // namespace mmn_fast
