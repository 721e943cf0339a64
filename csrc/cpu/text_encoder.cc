#include "cpu/text_encoder.h"

#include <algorithm>

#include "common/parallel.h"
#include "cpu/isa/kernel_table.h"
#include "cpu/row_layout.h"

namespace mmn_fast {
namespace {

// Most tokens of the sentences that go through all layers together. At DistilBERT's widths their rows take 28 MB, and a
// pass over the weights (170 MB in float32) serves 87 GFLOP.
constexpr int64_t kTokensAtOnce = 1024;

// Waking a sleeping worker takes about 50 us; in this time one core passes over some 2^17 floats in the cache.
int worthwhile_threads(int threads, int64_t floats) {
  return static_cast<int>(std::clamp<int64_t>(floats >> 17, 1, threads));
}

}  // namespace

TextEncoder::TextEncoder(const TextEncoderArgs& args, CpuIsa isa)
    : kernels_(cpu_kernels(isa)),
      args_(args),
      embedding_norm_(norm(args.embedding_norm, args.bert_eps)),
      sentence_norm_(norm(args.sentence_norm, args.sentence_eps)),
      heads_(linear(args.heads, args.width, 2 * args.joint)) {}

TextEncoder::Norm TextEncoder::norm(const NormArgs& args, float eps) const {
  return {std::vector<float>(args.weight, args.weight + args_.width),
          std::vector<float>(args.bias, args.bias + args_.width), eps};
}

// Makes a linear map of rows: a layer in which every row is its own only input.
ConvLayer TextEncoder::linear(const LinearArgs& args, int64_t in, int64_t out) const {
  const int terms = args_.bf16 ? 1 : 0;
  return ConvLayer(ConvLayerArgs{args.weight, args.bias, nullptr, nullptr, in, out, 1, 0, 0, false, terms, terms},
                   kernels_);
}

void TextEncoder::add_layer(const TextLayerArgs& layer, int64_t ffn) {
  const int64_t width = args_.width;
  layers_.push_back({linear(layer.qkv, width, 3 * width), linear(layer.out, width, width),
                     linear(layer.inner, width, ffn), linear(layer.outer, ffn, width),
                     norm(layer.attention_norm, args_.bert_eps), norm(layer.output_norm, args_.bert_eps)});
}

int64_t TextEncoder::packed_bytes() const {
  int64_t bytes = heads_.packed_bytes();
  for (const Layer& layer : layers_) {
    for (const ConvLayer* linear : {&layer.qkv, &layer.out, &layer.inner, &layer.outer}) bytes += linear->packed_bytes();
  }
  return bytes;
}

void TextEncoder::run(const SentencesArgs& sentences, int threads) const {
  for (int64_t first = 0, last; first < sentences.sentences; first = last) {
    const int64_t* const starts = sentences.starts + first;
    last = first + 1;
    while (last < sentences.sentences && sentences.starts[last + 1] - starts[0] <= kTokensAtOnce) ++last;
    run_some({sentences.token_ids, starts, sentences.contrastive + first * args_.joint,
              sentences.iou + first * args_.joint, last - first}, threads);
  }
}

void TextEncoder::run_some(const SentencesArgs& sentences, int threads) const {
  const int64_t tokens = sentences.starts[sentences.sentences] - sentences.starts[0];
  const int64_t width = padded_width(args_.width);
  int64_t wide = heads_.width();
  for (const Layer& layer : layers_) wide = std::max({wide, layer.qkv.width(), layer.inner.width()});

  // Kept from call to call, so nothing is allocated once it has grown. attend_f32 reads past the last row.
  thread_local FloatBuffer memory;
  float* const rows = memory.grow(tokens * (3 * width + wide) + kRowPad);
  float* const attended = rows + tokens * width;
  float* const result = attended + tokens * width;
  float* const wide_rows = result + tokens * width;
  ConvScratch none;  // only tiled layers use scratch memory

  const auto multiply = [&](const ConvLayer& layer, const float* in, int64_t in_stride, float* out) {
    layer.run(in, in_stride, out, tokens, 1, threads, none);
  };
  const auto add_and_norm = [&](const Norm& norm) {
    const LayerNormArgs args = norm.view();
    parallel_for(tokens, worthwhile_threads(threads, tokens * width), [&](int64_t first, int64_t last) {
      for (int64_t t = first * width; t < last * width; t += width) {
        kernels_.layer_norm_row_f32(rows + t, result + t, args, rows + t);
      }
    });
  };

  embed(sentences, rows, threads);
  for (const Layer& layer : layers_) {
    multiply(layer.qkv, rows, width, wide_rows);
    attend(sentences, wide_rows, attended, threads);
    multiply(layer.out, attended, width, result);
    add_and_norm(layer.attention_norm);
    multiply(layer.inner, rows, width, wide_rows);
    const int64_t row = layer.inner.width();
    parallel_for(tokens, worthwhile_threads(threads, 4 * tokens * row), [&](int64_t first, int64_t last) {
      kernels_.gelu_f32(wide_rows + first * row, (last - first) * row);
    });
    multiply(layer.outer, wide_rows, row, result);
    add_and_norm(layer.output_norm);
  }
  pool(sentences, rows, attended, threads);
  heads_.run(attended, width, wide_rows, sentences.sentences, 1, threads, none);
  for (int64_t s = 0; s < sentences.sentences; ++s) {
    const float* const row = wide_rows + s * heads_.width();
    kernels_.normalize_row_f32(row, sentences.contrastive + s * args_.joint, args_.joint);
    kernels_.normalize_row_f32(row + args_.joint, sentences.iou + s * args_.joint, args_.joint);
  }
}

void TextEncoder::embed(const SentencesArgs& sentences, float* rows, int threads) const {
  const int64_t width = args_.width, stride = padded_width(width), origin = sentences.starts[0];
  const LayerNormArgs norm = embedding_norm_.view();
  const int64_t tokens = sentences.starts[sentences.sentences] - origin;
  parallel_for(sentences.sentences, worthwhile_threads(threads, tokens * stride), [&](int64_t first, int64_t last) {
    for (int64_t s = first; s < last; ++s) {
      for (int64_t t = sentences.starts[s]; t < sentences.starts[s + 1]; ++t) {
        const float* const word = args_.word_embeddings + sentences.token_ids[t] * width;
        const float* const position = args_.position_embeddings + (t - sentences.starts[s]) * width;
        kernels_.layer_norm_row_f32(word, position, norm, rows + (t - origin) * stride);
      }
    }
  });
}

void TextEncoder::attend(const SentencesArgs& sentences, const float* qkv, float* out, int threads) const {
  const int64_t stride = layers_.front().qkv.width(), width = padded_width(args_.width);
  int64_t longest = 0, scores = 0;
  for (int64_t s = 0; s < sentences.sentences; ++s) {
    const int64_t tokens = sentences.starts[s + 1] - sentences.starts[s];
    longest = std::max(longest, tokens);
    scores += tokens * tokens;
  }
  const AttentionArgs args = {qkv, stride, args_.width, args_.num_heads, sentences.starts, out, width};
  const int64_t items = sentences.sentences * args_.num_heads;
  parallel_for(items, worthwhile_threads(threads, scores * args_.width / 4), [&](int64_t first, int64_t last) {
    thread_local FloatBuffer scratch;
    kernels_.attend_f32(args, scratch.grow(attention_scratch_size(longest, args_.width / args_.num_heads)), first, last);
  });
}

void TextEncoder::pool(const SentencesArgs& sentences, const float* rows, float* pooled, int threads) const {
  const int64_t width = args_.width, stride = padded_width(width), origin = sentences.starts[0];
  const LayerNormArgs norm = sentence_norm_.view();
  const int64_t tokens = sentences.starts[sentences.sentences] - origin;
  parallel_for(sentences.sentences, worthwhile_threads(threads, tokens * stride), [&](int64_t first, int64_t last) {
    for (int64_t s = first; s < last; ++s) {
      float* const mean = pooled + s * stride;
      const int64_t begin = sentences.starts[s] - origin, end = sentences.starts[s + 1] - origin;
      std::copy_n(rows + begin * stride, width, mean);
      for (int64_t t = begin + 1; t < end; ++t) {
        for (int64_t c = 0; c < width; ++c) mean[c] += rows[t * stride + c];
      }
      for (int64_t c = 0; c < width; ++c) mean[c] /= static_cast<float>(end - begin);
      kernels_.layer_norm_row_f32(mean, nullptr, norm, mean);
    }
  });
}

}  // namespace mmn_fast
