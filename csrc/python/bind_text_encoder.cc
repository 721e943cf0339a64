// Bindings of the text encoder: matrices are checked and packed once; the GIL is released during packing and runs.
#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "cpu/text_encoder.h"
#include "python/arrays.h"
#include "python/bind.h"

namespace py = pybind11;

namespace mmn_fast {
namespace {

using Pair = std::pair<py::array, py::array>;  // weight and bias

const float* floats(const py::array& array) { return static_cast<const float*>(array.data()); }

LinearArgs linear_of(const Pair& linear, const std::string& name, py::ssize_t out, py::ssize_t in) {
  const std::string weight = name + " weight", bias = name + " bias";
  check_array<float>(linear.first, weight.c_str(), "float32 [out, in]", 2);
  check_array<float>(linear.second, bias.c_str(), "float32 [out]", 1);
  check_shape(linear.first, weight.c_str(), "float32", {out, in});
  check_shape(linear.second, bias.c_str(), "float32", {out});
  return {floats(linear.first), floats(linear.second)};
}

NormArgs norm_of(const Pair& norm, const std::string& name, py::ssize_t width) {
  const std::string weight = name + " weight", bias = name + " bias";
  check_array<float>(norm.first, weight.c_str(), "float32 [H]", 1);
  check_array<float>(norm.second, bias.c_str(), "float32 [H]", 1);
  check_shape(norm.first, weight.c_str(), "float32", {width});
  check_shape(norm.second, bias.c_str(), "float32", {width});
  return {floats(norm.first), floats(norm.second)};
}

std::unique_ptr<TextEncoder> make_encoder(const py::array& words, const py::array& positions, const Pair& norm,
                                          const Pair& sentence_norm, const Pair& heads, int64_t num_heads,
                                          float bert_eps, float sentence_eps, bool bf16,
                                          const std::optional<std::string>& isa) {
  check_array<float>(words, "word_embeddings", "float32 [V, H]", 2);
  check_array<float>(positions, "position_embeddings", "float32 [L, H]", 2);
  const py::ssize_t H = words.shape(1);
  check_shape(positions, "position_embeddings", "float32", {positions.shape(0), H});
  MMN_CHECK(num_heads >= 1 && H >= 1 && H % num_heads == 0, "num_heads: expected a divisor of ", H, ", got ", num_heads);
  check_array<float>(heads.first, "heads weight", "float32 [2 J, H]", 2);
  const py::ssize_t branches = heads.first.shape(0);
  MMN_CHECK(branches >= 2 && branches % 2 == 0, "heads weight: expected float32 [2 J, ", H, "], got ",
            describe(heads.first));
  const TextEncoderArgs args = {floats(words),
                                floats(positions),
                                norm_of(norm, "embedding_norm", H),
                                norm_of(sentence_norm, "sentence_norm", H),
                                linear_of(heads, "heads", branches, H),
                                words.shape(0),
                                positions.shape(0),
                                H,
                                num_heads,
                                branches / 2,
                                bert_eps,
                                sentence_eps,
                                bf16};
  const CpuIsa chosen = isa_of(isa);
  py::gil_scoped_release released;
  return std::make_unique<TextEncoder>(args, chosen);
}

void add_layer(TextEncoder& encoder, const Pair& qkv, const Pair& out, const Pair& attention_norm, const Pair& inner,
               const Pair& outer, const Pair& output_norm) {
  const py::ssize_t H = encoder.width();
  check_array<float>(inner.first, "inner weight", "float32 [F, H]", 2);
  const py::ssize_t F = inner.first.shape(0);
  MMN_CHECK(F >= 1, "inner weight: expected at least one row, got none");
  const TextLayerArgs args = {linear_of(qkv, "qkv", 3 * H, H),
                              linear_of(out, "out", H, H),
                              norm_of(attention_norm, "attention_norm", H),
                              linear_of(inner, "inner", F, H),
                              linear_of(outer, "outer", H, F),
                              norm_of(output_norm, "output_norm", H)};
  py::gil_scoped_release released;
  encoder.add_layer(args, F);
}

void run_encoder(const TextEncoder& encoder, const py::array& token_ids, const py::array& starts,
                 py::array& contrastive, py::array& iou, int threads) {
  check_array<int64_t>(token_ids, "token_ids", "int64 [tokens]", 1);
  check_array<int64_t>(starts, "starts", "int64 [S + 1]", 1);
  check_array<float>(contrastive, "contrastive", "float32 [S, J]", 2, true);
  check_array<float>(iou, "iou", "float32 [S, J]", 2, true);
  MMN_CHECK(starts.shape(0) >= 1, "starts: expected int64 [S + 1], got int64 [0]");
  const py::ssize_t S = starts.shape(0) - 1, tokens = token_ids.shape(0);
  check_shape(contrastive, "contrastive", "float32", {S, encoder.joint()});
  check_shape(iou, "iou", "float32", {S, encoder.joint()});
  check_disjoint(contrastive, iou, "iou");
  check_threads(threads);
  const auto* const ids = static_cast<const int64_t*>(token_ids.data());
  const auto* const start = static_cast<const int64_t*>(starts.data());
  MMN_CHECK(start[0] == 0 && start[S] == tokens, "starts: expected 0 to ", tokens, ", got ", start[0], " to ", start[S]);
  for (py::ssize_t s = 0; s < S; ++s) {
    const int64_t length = start[s + 1] - start[s];
    MMN_CHECK(1 <= length && length <= encoder.max_tokens(), "starts: expected sentences of 1 to ",
              encoder.max_tokens(), " tokens, got ", length, " in sentence ", s);
  }
  for (py::ssize_t t = 0; t < tokens; ++t) {
    MMN_CHECK(0 <= ids[t] && ids[t] < encoder.vocab(), "token_ids: expected 0 to ", encoder.vocab() - 1, ", got ",
              ids[t], " at place ", t);
  }
  const SentencesArgs args = {ids, start, static_cast<float*>(contrastive.mutable_data()),
                              static_cast<float*>(iou.mutable_data()), S};
  py::gil_scoped_release released;
  encoder.run(args, threads);
}

}  // namespace

void register_text_encoder(py::module_& m) {
  py::class_<TextEncoder>(m, "TextEncoder", "The text encoder; see csrc/ops/text_encoder.h.")
      .def(py::init(&make_encoder), py::arg("word_embeddings").noconvert(), py::arg("position_embeddings").noconvert(),
           py::arg("embedding_norm"), py::arg("sentence_norm"), py::arg("heads"), py::arg("num_heads"),
           py::arg("bert_eps"), py::arg("sentence_eps"), py::arg("bf16") = false, py::arg("isa") = py::none(),
           py::keep_alive<1, 2>(), py::keep_alive<1, 3>())
      .def("add_layer", &add_layer, py::arg("qkv"), py::arg("out"), py::arg("attention_norm"), py::arg("inner"),
           py::arg("outer"), py::arg("output_norm"),
           "Adds a transformer layer; each argument is a pair of weight and bias.")
      .def("packed_bytes", &TextEncoder::packed_bytes, "Memory of the packed weights.")
      .def("run", &run_encoder, py::arg("token_ids").noconvert(), py::arg("starts").noconvert(),
           py::arg("contrastive").noconvert(), py::arg("iou").noconvert(), py::arg("threads"),
           "Fills contrastive and iou [S, J], unit norm, from the packed word pieces of S sentences.");
}

}  // namespace mmn_fast
