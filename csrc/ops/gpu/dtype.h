// What the contracts of the GPU engine's ops share; the CPU engine fuses the same steps elsewhere.
//
// Elements of type `dtype` are what the tensor cores read and write; sums, biases and weights are float32. Maps and
// rows are channels-last with the videos minor to the cells: [cells, B, C]. No output overlaps an input, every size may
// be 0, no pointer needs an alignment beyond that of its type (16-byte rows go faster). All arithmetic is float32
// without contraction, in an order that depends on an item's own sizes alone: a result depends on nothing else in the
// call.
#pragma once

#include <cstdint>

namespace mmn_fast {

enum class Dtype : int { kFloat32 = 0, kFloat16 = 1, kBfloat16 = 2 };

}  // namespace mmn_fast
