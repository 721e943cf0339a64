// Contracts of the work on rows between products. `width` is a multiple of kRowPad.
#pragma once

#include <cstdint>

namespace mmn_fast {

constexpr int64_t kRowPad = 32;  // every row is padded with zeros to whole panels of any instruction set

// Sets rows [first, last), columns [0, width), from `data` on, to the bias, before products are added.
struct StartRowsArgs {
  float* data;
  int64_t stride, width;
  const float* bias;  // [width]
};

// row = max(0, row) * weights[row / group], without max unless `relu`. NaN stays NaN. weights = nullptr means 1.
struct FinishRowsArgs {
  float* data;
  int64_t stride, width;
  const float* weights;
  int64_t group;
  bool relu;
};

}  // namespace mmn_fast
