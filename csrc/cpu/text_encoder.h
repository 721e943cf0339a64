// text_encoder on the CPU: packed weights, and the loops around the kernels. See ops/text_encoder.h.
#pragma once

#include <vector>

#include "cpu/conv_layer.h"
#include "cpu/isa/isa.h"
#include "ops/text_encoder.h"

namespace mmn_fast {

class TextEncoder {
 public:
  // Throws std::invalid_argument if args.bf16 is set and `isa` does not multiply bf16.
  TextEncoder(const TextEncoderArgs& args, CpuIsa isa);
  TextEncoder(const TextEncoder&) = delete;  // its layers point to its kernels
  TextEncoder& operator=(const TextEncoder&) = delete;

  // Layers run in the order of their addition.
  void add_layer(const TextLayerArgs& layer, int64_t ffn);

  // May be called from several threads at once.
  void run(const SentencesArgs& sentences, int threads) const;

  int64_t vocab() const { return args_.vocab; }
  int64_t max_tokens() const { return args_.max_tokens; }
  int64_t width() const { return args_.width; }
  int64_t joint() const { return args_.joint; }
  int64_t packed_bytes() const;

 private:
  struct Norm {
    std::vector<float> weight, bias;
    float eps;

    LayerNormArgs view() const { return {weight.data(), bias.data(), static_cast<int64_t>(weight.size()), eps}; }
  };
  struct Layer {
    ConvLayer qkv, out, inner, outer;
    Norm attention_norm, output_norm;
  };

  Norm norm(const NormArgs& args, float eps) const;
  ConvLayer linear(const LinearArgs& args, int64_t in, int64_t out) const;
  void run_some(const SentencesArgs& sentences, int threads) const;
  void embed(const SentencesArgs& sentences, float* rows, int threads) const;
  void attend(const SentencesArgs& sentences, const float* qkv, float* out, int threads) const;
  void pool(const SentencesArgs& sentences, const float* rows, float* pooled, int threads) const;

  const CpuKernels kernels_;
  TextEncoderArgs args_;  // only the views of the embeddings are read after construction
  Norm embedding_norm_, sentence_norm_;
  ConvLayer heads_;
  std::vector<Layer> layers_;
};

}  // namespace mmn_fast
