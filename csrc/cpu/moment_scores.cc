#include <algorithm>
#include <cmath>
#include <vector>

#include "common/buffer.h"
#include "common/parallel.h"
#include "cpu/cpu_ops.h"
#include "cpu/kernel_table.h"
#include "cpu/row_layout.h"

namespace mmn_fast {
namespace {

constexpr int64_t kSentencesAtOnce = 256;  // bounds the memory of the packed sentences and of a block's products

float sigmoid_of_10(float cosine) { return 1.0f / (1.0f + std::exp(-10.0f * cosine)); }

// [panel][j][columns]; zeros past the last sentence.
void pack_sentences(const float* text, int64_t sentences, int64_t joint, int64_t columns, float* packed) {
  for (int64_t s = 0; s < padded_width(sentences); ++s) {
    float* to = packed + s / columns * columns * joint + s % columns;
    for (int64_t j = 0; j < joint; ++j) to[j * columns] = s < sentences ? text[s * joint + j] : 0.0f;
  }
}

}  // namespace

void moment_scores_cpu(const MomentScoresArgs& args, CpuIsa isa, int threads) {
  const CpuKernels kernels = cpu_kernels(isa);
  thread_local FloatBuffer packed_sentences;
  const int64_t joint = args.joint, blocks = (args.proposals + kRowBlock - 1) / kRowBlock;
  for (int64_t first = 0; first < args.sentences; first += kSentencesAtOnce) {
    const int64_t count = std::min(kSentencesAtOnce, args.sentences - first), width = padded_width(count);
    float* const packed = packed_sentences.grow(2 * width * joint);
    pack_sentences(args.text_contrastive + first * joint, count, joint, kernels.gemm_columns, packed);
    pack_sentences(args.text_iou + first * joint, count, joint, kernels.gemm_columns, packed + width * joint);
    parallel_for(2 * blocks, threads, [&](int64_t first_item, int64_t last_item) {
      thread_local FloatBuffer pack, products;
      GemmArgs gemm = {};
      gemm.a_stride = gemm.k = joint;
      gemm.c = products.grow(kRowBlock * width);
      gemm.c_stride = width;
      gemm.group = 1;
      gemm.pack = pack.grow(gemm_pack_size(joint));
      for (int64_t item = first_item; item < last_item; ++item) {
        const bool iou = item >= blocks;
        const int64_t row = item % blocks * kRowBlock;
        gemm.a = (iou ? args.video_iou : args.video_contrastive) + row * joint;
        gemm.b = packed + (iou ? width * joint : 0);
        gemm.rows = std::min(kRowBlock, args.proposals - row);
        kernels.gemm_f32(gemm, 0, width / kernels.gemm_columns);
        float* const out = (iou ? args.iou : args.contrastive) + first * args.proposals + row;
        for (int64_t s = 0; s < count; ++s) {
          for (int64_t p = 0; p < gemm.rows; ++p) {
            const float cosine = gemm.c[p * width + s];
            out[s * args.proposals + p] = iou ? sigmoid_of_10(cosine) : cosine;
          }
        }
      }
    });
  }
}

}  // namespace mmn_fast
