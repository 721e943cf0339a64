// Contracts of text_encoder's work between its products.
#pragma once

#include <cstdint>

namespace mmn_fast {

constexpr int64_t kQueryBlock = 4;  // queries per pass over a head's keys; their sums hide each other's latency

struct LayerNormArgs {
  const float *weight, *bias;  // [width]
  int64_t width;               // any
  float eps;
};

// For every token t of sentence s and every head: out = softmax(q[t] k^T / sqrt(head width)) v over the tokens of s.
// Item s * heads + h is head h of sentence s. Up to 16 floats past the last row of qkv may be read.
struct AttentionArgs {
  const float* qkv;       // [tokens, stride]: queries, keys, values of `width` each
  int64_t stride, width;  // width: heads times a head's width, which may be any
  int64_t heads;
  const int64_t* starts;  // [sentences + 1]; row 0 is token starts[0]
  float* out;             // [tokens, out_stride]
  int64_t out_stride;
};

}  // namespace mmn_fast
