// Binding of search_moments: NumPy arrays are checked, and the GIL is released while the search runs.
#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <cmath>
#include <optional>
#include <string>
#include <utility>

#include "common/check.h"
#include "cpu/search/search_moments.h"
#include "python/arrays.h"
#include "python/bind.h"

namespace py = pybind11;

namespace mmn_fast {
namespace {

// A dtype that pybind11 has no C++ type for.
bool is_half(const py::array& array) { return array.dtype().kind() == 'f' && array.itemsize() == 2; }

using Codes = std::optional<std::pair<py::array, py::array>>;

std::optional<StoredCodes> check_codes(const Codes& given, const std::string& name, py::ssize_t R, py::ssize_t J) {
  if (!given) return std::nullopt;
  const auto& [codes, steps] = *given;
  check_array<int8_t>(codes, (name + ".codes").c_str(), "int8 [R, J]", 2);
  check_array<float>(steps, (name + ".steps").c_str(), "float32 [R, 2]", 2);
  check_shape(codes, (name + ".codes").c_str(), "int8", {R, J});
  check_shape(steps, (name + ".steps").c_str(), "float32", {R, 2});
  return StoredCodes{static_cast<const int8_t*>(codes.data()), static_cast<const float*>(steps.data())};
}

// The rows without their codes.
StoredRows check_rows(const py::array& contrastive, const py::array& iou, double norm) {
  const bool half = is_half(iou);
  const char* expected = half ? "float16 [R, J]" : "float32 or float16 [R, J]";
  check_array(iou, "iou", expected, half || py::isinstance<py::array_t<float>>(iou), 2, false);
  check_array(contrastive, "contrastive", half ? expected : "float32 [R, J]",
              half ? is_half(contrastive) : py::isinstance<py::array_t<float>>(contrastive), 2, false);
  check_shape(contrastive, "contrastive", half ? "float16" : "float32", {iou.shape(0), iou.shape(1)});
  const float longest = static_cast<float>(norm);
  MMN_CHECK(norm >= 0.0 && std::isfinite(longest), "norm: expected a number from 0, got ", norm);
  return {half, contrastive.data(), iou.data(), nullptr, nullptr, longest};
}

void check_windows(const py::array& starts, const py::array& window_videos, const py::array& window_numbers,
                   int64_t proposals, int64_t rows) {
  check_array<int64_t>(starts, "starts", "int64 [W]", 1);
  check_array<int64_t>(window_videos, "window_videos", "int64 [W]", 1);
  check_array<int64_t>(window_numbers, "window_numbers", "int64 [W]", 1);
  const py::ssize_t W = starts.shape(0);
  check_shape(window_videos, "window_videos", "int64", {W});
  check_shape(window_numbers, "window_numbers", "int64", {W});
  MMN_CHECK(proposals >= 1 && proposals < INT32_MAX, "proposals: expected 1 to 2^31 - 2, got ", proposals);
  const auto* first = static_cast<const int64_t*>(starts.data());
  const auto* videos = static_cast<const int64_t*>(window_videos.data());
  const auto* numbers = static_cast<const int64_t*>(window_numbers.data());
  for (py::ssize_t w = 0; w < W; ++w) {
    MMN_CHECK(first[w] >= 0 && first[w] <= rows - proposals, "starts: expected ", proposals, " of ", rows,
              " rows from each, got ", first[w], " for window ", w);
    MMN_CHECK(videos[w] >= (w == 0 ? 0 : videos[w - 1]), "window_videos: expected rising numbers from 0, got ", videos[w],
              " for window ", w);
    MMN_CHECK(numbers[w] >= 0 && (w == 0 || numbers[w] > numbers[w - 1]),
              "window_numbers: expected strictly rising numbers from 0, got ", numbers[w], " for window ", w);
  }
}

void search_moments(const py::array& contrastive, const py::array& iou, const Codes& contrastive_codes,
                    const Codes& iou_codes, double norm, const py::array& starts, const py::array& window_videos, const py::array& window_numbers,
                    int64_t proposals, const py::array& text_contrastive, const py::array& text_iou,
                    const std::string& fusion, double power, const py::array& least, py::array& scores,
                    py::array& videos, py::array& windows, py::array& cells, int threads,
                    const std::optional<std::string>& isa) {
  StoredRows rows = check_rows(contrastive, iou, norm);
  MMN_CHECK(contrastive_codes.has_value() == iou_codes.has_value(), "codes: expected those of both branches, or of none");
  const auto codes_of_contrastive = check_codes(contrastive_codes, "contrastive_codes", iou.shape(0), iou.shape(1));
  const auto codes_of_iou = check_codes(iou_codes, "iou_codes", iou.shape(0), iou.shape(1));
  if (codes_of_iou) rows.contrastive_codes = &*codes_of_contrastive, rows.iou_codes = &*codes_of_iou;
  check_windows(starts, window_videos, window_numbers, proposals, iou.shape(0));
  check_array<float>(text_contrastive, "text_contrastive", "float32 [S, J]", 2);
  check_array<float>(text_iou, "text_iou", "float32 [S, J]", 2);
  const py::ssize_t S = text_iou.shape(0), J = iou.shape(1);
  check_shape(text_contrastive, "text_contrastive", "float32", {S, J});
  check_shape(text_iou, "text_iou", "float32", {S, J});
  MMN_CHECK(fusion == "power" || fusion == "product", "fusion: expected power or product, got '", fusion, "'");
  MMN_CHECK(std::isfinite(power), "power: expected a finite number, got ", power);
  check_array<float>(least, "least", "float32 [S]", 1);
  check_shape(least, "least", "float32", {S});
  check_array<float>(scores, "scores", "float32 [S, k]", 2, true);
  check_array<int64_t>(videos, "videos", "int64 [S, k]", 2, true);
  check_array<int64_t>(windows, "windows", "int64 [S, k]", 2, true);
  check_array<int32_t>(cells, "cells", "int32 [S, k]", 2, true);
  const py::ssize_t k = scores.shape(1);
  MMN_CHECK(k >= 1, "scores: expected room for at least one video, got none");
  check_shape(scores, "scores", "float32", {S, k});
  check_shape(videos, "videos", "int64", {S, k});
  check_shape(windows, "windows", "int64", {S, k});
  check_shape(cells, "cells", "int32", {S, k});
  check_threads(threads);
  const CpuIsa chosen = isa_of(isa);
  const SearchMomentsArgs args = {rows,
                                  static_cast<const int64_t*>(starts.data()),
                                  static_cast<const int64_t*>(window_videos.data()),
                                  static_cast<const int64_t*>(window_numbers.data()),
                                  starts.shape(0),
                                  proposals,
                                  J,
                                  static_cast<const float*>(text_contrastive.data()),
                                  static_cast<const float*>(text_iou.data()),
                                  S,
                                  fusion == "product" ? ScoreFusion::kProduct : ScoreFusion::kPower,
                                  static_cast<float>(power),
                                  static_cast<const float*>(least.data()),
                                  k,
                                  static_cast<float*>(scores.mutable_data()),
                                  static_cast<int64_t*>(videos.mutable_data()),
                                  static_cast<int64_t*>(windows.mutable_data()),
                                  static_cast<int32_t*>(cells.mutable_data())};
  py::gil_scoped_release released;
  search_moments_cpu(args, chosen, threads);
}

}  // namespace

void register_search(py::module_& m) {
  m.def("search_moments", &search_moments, py::arg("contrastive").noconvert(), py::arg("iou").noconvert(),
        py::arg("contrastive_codes"), py::arg("iou_codes"), py::arg("norm"),
        py::arg("starts").noconvert(), py::arg("window_videos").noconvert(), py::arg("window_numbers").noconvert(),
        py::arg("proposals"), py::arg("text_contrastive").noconvert(), py::arg("text_iou").noconvert(),
        py::arg("fusion"), py::arg("power"), py::arg("least").noconvert(), py::arg("scores").noconvert(),
        py::arg("videos").noconvert(), py::arg("windows").noconvert(), py::arg("cells").noconvert(), py::arg("threads"),
        py::arg("isa") = py::none(),
        "Merges a shard's best videos into scores, videos, windows and cells [S, k]; see csrc/ops/search_moments.h.");
}

}  // namespace mmn_fast
