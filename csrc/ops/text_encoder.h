// Contract of text_encoder: sentences as word pieces to the joint space.
//
//   x[t]   = norm(word_embeddings[id[t]] + position_embeddings[place of t in its sentence])
//   layer: x = norm(x + out(attention(qkv(x)))),  x = norm(x + outer(gelu(inner(x))))
//   s      = norm(mean of x over the sentence's tokens)
//   contrastive, iou = the two halves of heads(s), each divided by its length
//
// - Sentences are packed: the rows of all tokens lie one after the other, and `starts` holds each sentence's first row.
//   There is no padding and no work on it; attention sees its own sentence alone.
// - gelu is exact, x / 2 (1 + erf(x / sqrt 2)); attention divides by the root of the head's width.
// - Every sum has one order that follows from the sizes and the sentence. So a sentence's result depends neither on the
//   other sentences, nor on the number of threads. NaN and infinity stay in their sentence.
// - In bf16 the operands of the linear maps are rounded to bf16; sums, attention, norms and gelu stay float32.
//
// Implemented by cpu/text_encoder.cc, its kernels by cpu/kernels/text-inl.h and cpu/kernels/products.
#pragma once

#include <cstdint>

namespace mmn_fast {

struct NormArgs {
  const float *weight, *bias;  // [width]
};

struct LinearArgs {
  const float* weight;  // [out, in]
  const float* bias;    // [out]
};

// Views of the caller's arrays; adding a layer copies them.
struct TextLayerArgs {
  LinearArgs qkv;    // [3 width, width]: queries, keys, values, each head by head
  LinearArgs out;    // [width, width]
  NormArgs attention_norm;
  LinearArgs inner;  // [ffn, width]
  LinearArgs outer;  // [width, ffn]
  NormArgs output_norm;
};

// Views of the caller's arrays. The embeddings are read in place and must outlive the encoder; all others are copied.
struct TextEncoderArgs {
  const float* word_embeddings;      // [vocab, width]
  const float* position_embeddings;  // [max_tokens, width]
  NormArgs embedding_norm;
  NormArgs sentence_norm;
  LinearArgs heads;                  // [2 joint, width]: contrastive, iou
  int64_t vocab, max_tokens, width, num_heads, joint;
  float bert_eps, sentence_eps;      // epsilons of the norms in DistilBERT and of the sentence's norm
  bool bf16;
};

struct SentencesArgs {
  const int64_t* token_ids;  // [tokens], 0 to vocab - 1
  const int64_t* starts;     // [sentences + 1], rising, places in token_ids; a sentence has 1 to max_tokens tokens
  float *contrastive, *iou;  // [sentences, joint]
  int64_t sentences;
};

}  // namespace mmn_fast
