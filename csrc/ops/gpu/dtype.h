// Rules that all contracts of the GPU engine's ops share; the CPU engine fuses the same steps elsewhere.
//
// The tensor cores read and write elements of type `dtype`; sums, biases and weights are float32. Maps and rows are
// channels-last with videos minor to cells: [cells, B, C]. No output overlaps an input, every size may be 0, and no
// pointer needs more than its type's alignment (16-byte rows go faster). All arithmetic is float32 without contraction,
// in an order that depends on an item's own sizes alone. So a result does not depend on the rest of the call.
#pragma once

#include <cstdint>

namespace mmn_fast {

enum class Dtype : int { kFloat32 = 0, kFloat16 = 1, kBfloat16 = 2 };

}  // namespace mmn_fast
