// Bindings of the CPU ops: NumPy arrays are checked, and the GIL is released while the kernels run.
#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <array>
#include <cmath>
#include <optional>
#include <string>
#include <vector>

#include "common/check.h"
#include "cpu/cpu_ops.h"
#include "cpu/isa/kernel_table.h"
#include "python/arrays.h"
#include "python/bind.h"

namespace py = pybind11;

namespace mmn_fast {
namespace {

std::vector<std::string> words(const std::vector<CpuIsa>& isas) {
  std::vector<std::string> words;
  for (CpuIsa isa : isas) words.emplace_back(name(isa));
  return words;
}

void temporal_nms(const py::array& scores, const py::array& moments, double iou_threshold, int64_t top_k,
                  py::array& out, int threads, const std::optional<std::string>& isa) {
  check_array<float>(scores, "scores", "float32 [S, P]", 2);
  check_array<float>(moments, "moments", "float32 [P, 2]", 2);
  check_array<int32_t>(out, "out", "int32 [S, top_k]", 2, true);
  MMN_CHECK(iou_threshold >= 0.0 && iou_threshold <= 1.0, "iou_threshold: expected 0 to 1, got ", iou_threshold);
  MMN_CHECK(top_k >= 1, "top_k: expected at least 1, got ", top_k);
  const py::ssize_t S = scores.shape(0), P = scores.shape(1);
  MMN_CHECK(P < INT32_MAX - kScratchPad, "scores: expected fewer than 2^31 - 16 cells, got ", P);
  check_shape(moments, "moments", "float32", {P, 2});
  check_shape(out, "out", "int32", {S, top_k});
  check_disjoint(out, scores, "scores");
  check_disjoint(out, moments, "moments");
  check_threads(threads);
  const CpuIsa chosen = isa_of(isa);
  const TemporalNmsArgs args = {static_cast<const float*>(scores.data()),
                                static_cast<const float*>(moments.data()),
                                static_cast<int32_t*>(out.mutable_data()),
                                S,
                                P,
                                top_k,
                                static_cast<float>(iou_threshold)};
  py::gil_scoped_release released;
  temporal_nms_cpu(args, chosen, threads);
}

MatchInputs check_inputs(const py::array& video_contrastive, const py::array& video_iou,
                        const py::array& text_contrastive, const py::array& text_iou) {
  check_array<float>(video_contrastive, "video_contrastive", "float32 [P, J]", 2);
  check_array<float>(text_contrastive, "text_contrastive", "float32 [S, J]", 2);
  check_array<float>(video_iou, "video_iou", "float32 [P, J]", 2);
  check_array<float>(text_iou, "text_iou", "float32 [S, J]", 2);
  const py::ssize_t P = video_contrastive.shape(0), J = video_contrastive.shape(1), S = text_contrastive.shape(0);
  check_shape(video_iou, "video_iou", "float32", {P, J});
  check_shape(text_contrastive, "text_contrastive", "float32", {S, J});
  check_shape(text_iou, "text_iou", "float32", {S, J});
  return {static_cast<const float*>(video_contrastive.data()),
          static_cast<const float*>(video_iou.data()),
          static_cast<const float*>(text_contrastive.data()),
          static_cast<const float*>(text_iou.data()),
          P,
          S,
          J};
}

void match_scores(const py::array& video_contrastive, const py::array& video_iou, const py::array& text_contrastive,
                   const py::array& text_iou, py::array& contrastive, py::array& iou, int threads,
                   const std::optional<std::string>& isa) {
  const MatchInputs inputs = check_inputs(video_contrastive, video_iou, text_contrastive, text_iou);
  const py::ssize_t S = inputs.sentences, P = inputs.proposals;
  check_array<float>(contrastive, "contrastive", "float32 [S, P]", 2, true);
  check_array<float>(iou, "iou", "float32 [S, P]", 2, true);
  check_shape(contrastive, "contrastive", "float32", {S, P});
  check_shape(iou, "iou", "float32", {S, P});
  check_disjoint(contrastive, iou, "iou");
  check_threads(threads);
  const CpuIsa chosen = isa_of(isa);
  const MatchScoresArgs args = {inputs, static_cast<float*>(contrastive.mutable_data()),
                                 static_cast<float*>(iou.mutable_data())};
  py::gil_scoped_release released;
  match_scores_cpu(args, chosen, threads);
}

// What top_moments needs beside its arrays.
struct Choosing {
  ScoreFusion fusion;
  float power, iou_threshold;
  int64_t top_k;

  Choosing(const std::string& fusion_name, double exponent, double threshold, int64_t count) : top_k(count) {
    MMN_CHECK(fusion_name == "power" || fusion_name == "product", "fusion: expected power or product, got '", fusion_name,
              "'");
    MMN_CHECK(std::isfinite(exponent), "power: expected a finite number, got ", exponent);
    MMN_CHECK(threshold >= 0.0 && threshold <= 1.0, "iou_threshold: expected 0 to 1, got ", threshold);
    MMN_CHECK(top_k >= 1, "top_k: expected at least 1, got ", top_k);
    fusion = fusion_name == "product" ? ScoreFusion::kProduct : ScoreFusion::kPower;
    power = static_cast<float>(exponent);
    iou_threshold = static_cast<float>(threshold);
  }
};

void check_proposals(int64_t P) {
  MMN_CHECK(P < INT32_MAX - kScratchPad, "video_contrastive: expected fewer than 2^31 - 16 proposals, got ", P);
}

void check_selection(const py::array& cells, const py::array& scores, int64_t S, int64_t top_k) {
  check_array<int32_t>(cells, "cells", "int32 [S, top_k]", 2, true);
  check_array<float>(scores, "scores", "float32 [S, top_k]", 2, true);
  check_shape(cells, "cells", "int32", {S, top_k});
  check_shape(scores, "scores", "float32", {S, top_k});
  check_disjoint(cells, scores, "scores");
}

TopMomentsArgs arguments(const MatchInputs& inputs, const float* moments, const Choosing& how, int32_t* cells,
                         float* scores) {
  return {inputs, moments, how.fusion, how.power, how.iou_threshold, how.top_k, cells, scores};
}

void top_moments(const py::array& video_contrastive, const py::array& video_iou, const py::array& text_contrastive,
                 const py::array& text_iou, const py::array& moments, const std::string& fusion, double power,
                 double iou_threshold, int64_t top_k, py::array& cells, py::array& scores, int threads,
                 const std::optional<std::string>& isa) {
  const MatchInputs inputs = check_inputs(video_contrastive, video_iou, text_contrastive, text_iou);
  check_proposals(inputs.proposals);
  check_array<float>(moments, "moments", "float32 [P, 2]", 2);
  check_shape(moments, "moments", "float32", {inputs.proposals, 2});
  const Choosing how(fusion, power, iou_threshold, top_k);
  check_selection(cells, scores, inputs.sentences, top_k);
  check_threads(threads);
  const CpuIsa chosen = isa_of(isa);
  const TopMomentsArgs args = arguments(inputs, static_cast<const float*>(moments.data()), how,
                                        static_cast<int32_t*>(cells.mutable_data()),
                                        static_cast<float*>(scores.mutable_data()));
  py::gil_scoped_release released;
  top_moments_cpu(args, chosen, threads);
}

void top_moments_of_pairs(const std::vector<std::array<py::array, 4>>& pairs, const py::array& moments,
                          const std::string& fusion, double power, double iou_threshold, int64_t top_k, py::array& cells,
                          py::array& scores, int threads, const std::optional<std::string>& isa) {
  const auto B = static_cast<py::ssize_t>(pairs.size());
  check_array<float>(moments, "moments", "float32 [B, P, 2]", 3);
  const py::ssize_t P = moments.shape(1);
  check_proposals(P);
  check_shape(moments, "moments", "float32", {B, P, 2});
  const Choosing how(fusion, power, iou_threshold, top_k);
  std::vector<MatchInputs> inputs;
  int64_t S = 0;
  for (const auto& [video_contrastive, video_iou, text_contrastive, text_iou] : pairs) {
    inputs.push_back(check_inputs(video_contrastive, video_iou, text_contrastive, text_iou));
    MMN_CHECK(inputs.back().proposals == P, "video_contrastive: expected ", P, " proposals as in moments, got ",
              inputs.back().proposals);
    S += inputs.back().sentences;
  }
  check_selection(cells, scores, S, top_k);
  check_threads(threads);
  const CpuIsa chosen = isa_of(isa);
  std::vector<TopMomentsArgs> args;
  int64_t row = 0;
  for (py::ssize_t b = 0; b < B; ++b) {
    args.push_back(arguments(inputs[b], static_cast<const float*>(moments.data()) + 2 * b * P, how,
                             static_cast<int32_t*>(cells.mutable_data()) + row * top_k,
                             static_cast<float*>(scores.mutable_data()) + row * top_k));
    row += inputs[b].sentences;
  }
  py::gil_scoped_release released;
  top_moments_of_pairs_cpu(args, chosen, threads);
}

void target_iou(const py::array& boxes, const py::array& starts, const py::array& first_frames, const py::array& bounds,
                const py::array& truth, int64_t truth_first_frame, bool half_open, py::array& out, int threads) {
  check_array<double>(boxes, "boxes", "float64 [rows, 4]", 2);
  check_array<int64_t>(starts, "starts", "int64 [K + 1]", 1);
  check_array<int64_t>(first_frames, "first_frames", "int64 [K]", 1);
  check_array<int64_t>(bounds, "bounds", "int64 [K, N + 1]", 2);
  check_array<double>(truth, "truth", "float64 [frames, 4]", 2);
  check_array<float>(out, "out", "float32 [K, N, N]", 3, true);
  const py::ssize_t K = out.shape(0), N = out.shape(1), rows = boxes.shape(0), truth_rows = truth.shape(0);
  check_shape(out, "out", "float32", {K, N, N});
  check_shape(boxes, "boxes", "float64", {rows, 4});
  check_shape(truth, "truth", "float64", {truth_rows, 4});
  check_shape(starts, "starts", "int64", {K + 1});
  check_shape(first_frames, "first_frames", "int64", {K});
  check_shape(bounds, "bounds", "int64", {K, N + 1});
  check_threads(threads);
  const TargetIouArgs args = {static_cast<const double*>(boxes.data()),
                              static_cast<const int64_t*>(starts.data()),
                              static_cast<const int64_t*>(first_frames.data()),
                              static_cast<const int64_t*>(bounds.data()),
                              static_cast<const double*>(truth.data()),
                              static_cast<float*>(out.mutable_data()),
                              K,
                              N,
                              rows,
                              truth_rows,
                              truth_first_frame,
                              half_open ? 0.0 : 1.0};
  py::gil_scoped_release released;
  target_iou_cpu(args, threads);
}

}  // namespace

void register_cpu_ops(py::module_& m) {
  m.def("cpu_isa", [] { return std::string(name(chosen_cpu_isa())); },
        "The instruction set in use: MMN_FAST_CPU_ISA (ValueError if unusable), else the highest that has kernels.");
  m.def("available_cpu_isas",
        [] { return words(available_cpu_isas()); },
        "The instruction sets that both this host and this build have, in rising order.");
  m.def("bf16_isas", [](bool tiles) { return words(bf16_isas(tiles)); }, py::arg("tiles") = false,
        "The instruction sets of this build that multiply bf16 (with `tiles`: by tiles), whatever the host.");
  m.def("kernel_isas",
        [](const std::optional<std::string>& isa) {
          py::dict sources;
          for (const auto& [op, source] : kernel_isas(isa_of(isa))) sources[py::str(op)] = name(source);
          return sources;
        },
        py::arg("isa") = py::none(),
        "Op name -> the instruction set whose code runs it: a lower one if `isa` does not implement the op.");
  m.def("temporal_nms", &temporal_nms, py::arg("scores").noconvert(), py::arg("moments").noconvert(),
        py::arg("iou_threshold"), py::arg("top_k"), py::arg("out").noconvert(), py::arg("threads"),
        py::arg("isa") = py::none(),
        "Fills out [S, top_k] from scores [S, P] and moments [P, 2]; see csrc/ops/temporal_nms.h.");
  m.def("match_scores", &match_scores, py::arg("video_contrastive").noconvert(), py::arg("video_iou").noconvert(),
        py::arg("text_contrastive").noconvert(), py::arg("text_iou").noconvert(), py::arg("contrastive").noconvert(),
        py::arg("iou").noconvert(), py::arg("threads"), py::arg("isa") = py::none(),
        "Fills contrastive and iou [S, P] from video [P, J] and text [S, J]; see csrc/ops/match_scores.h.");
  m.def("top_moments", &top_moments, py::arg("video_contrastive").noconvert(), py::arg("video_iou").noconvert(),
        py::arg("text_contrastive").noconvert(), py::arg("text_iou").noconvert(), py::arg("moments").noconvert(),
        py::arg("fusion"), py::arg("power"), py::arg("iou_threshold"), py::arg("top_k"), py::arg("cells").noconvert(),
        py::arg("scores").noconvert(), py::arg("threads"), py::arg("isa") = py::none(),
        "Fills cells and scores [S, top_k] from embeddings and moments [P, 2]; see csrc/ops/top_moments.h.");
  m.def("top_moments_of_pairs", &top_moments_of_pairs, py::arg("pairs"), py::arg("moments").noconvert(),
        py::arg("fusion"), py::arg("power"), py::arg("iou_threshold"), py::arg("top_k"), py::arg("cells").noconvert(),
        py::arg("scores").noconvert(), py::arg("threads"), py::arg("isa") = py::none(),
        "Fills cells and scores [all S, top_k] from pairs of a video's and its sentences' embeddings, and moments"
        " [B, P, 2]; see csrc/ops/top_moments.h.");
  m.def("target_iou", &target_iou, py::arg("boxes").noconvert(), py::arg("starts").noconvert(),
        py::arg("first_frames").noconvert(), py::arg("bounds").noconvert(), py::arg("truth").noconvert(),
        py::arg("truth_first_frame"), py::arg("half_open"), py::arg("out").noconvert(), py::arg("threads"),
        "Fills out [K, N, N] from boxes [rows, 4] and truth [frames, 4]; see csrc/ops/target_iou.h.");
}

}  // namespace mmn_fast
