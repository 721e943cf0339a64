// Bindings of the video branch: weights are checked and copied once; the GIL is released during packing and runs.
#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "cpu/row_layout.h"
#include "cpu/video_encoder.h"
#include "python/arrays.h"
#include "python/bind.h"

namespace py = pybind11;

namespace mmn_fast {
namespace {

const float* floats(const py::array& array) { return static_cast<const float*>(array.data()); }
const int32_t* ints(const py::array& array) { return static_cast<const int32_t*>(array.data()); }

void check_rows(const py::array& rows, const char* argument, int64_t end) {
  const int32_t* row = ints(rows);
  for (py::ssize_t n = 0; n < rows.size(); ++n) {
    MMN_CHECK(-1 <= row[n] && row[n] < end, argument, ": expected -1 to ", end - 1, ", got ", row[n]);
  }
}

void check_covered(const py::array& outputs, int64_t cells) {
  std::vector<int> covered(cells);
  for (py::ssize_t n = 0; n < outputs.size(); ++n) {
    if (ints(outputs)[n] >= 0) ++covered[ints(outputs)[n]];
  }
  for (int64_t cell = 0; cell < cells; ++cell) {
    MMN_CHECK(covered[cell] == 1, "outputs: expected every cell once, got cell ", cell, " ", covered[cell], " times");
  }
}

void check_terms(int a, int b) {
  const bool known = (a == 0 && b == 0) || (1 <= b && b <= a && a <= 2);
  MMN_CHECK(known, "terms: expected 0, 0 or 1 <= terms_b <= terms_a <= 2, got ", a, ", ", b);
}

ConvLayer direct_layer(const py::array& weight, const py::array& bias, const py::array& neighbours,
                       const std::optional<py::array>& cell_weights, int64_t cells_in, bool relu,
                       const CpuKernels& kernels, int terms_a = 0, int terms_b = 0) {
  check_terms(terms_a, terms_b);
  check_array<float>(weight, "weight", "float32 [C_out, C_in, taps]", 3);
  check_array<float>(bias, "bias", "float32 [C_out]", 1);
  check_array<int32_t>(neighbours, "neighbours", "int32 [R, taps]", 2);
  check_shape(bias, "bias", "float32", {weight.shape(0)});
  const py::ssize_t R = neighbours.shape(0);
  check_shape(neighbours, "neighbours", "int32", {R, weight.shape(2)});
  check_rows(neighbours, "neighbours", cells_in);
  if (cell_weights) {
    check_array<float>(*cell_weights, "cell_weights", "float32 [R]", 1);
    check_shape(*cell_weights, "cell_weights", "float32", {R});
  }
  const ConvLayerArgs args = {floats(weight),  floats(bias),    ints(neighbours), cell_weights ? floats(*cell_weights) : nullptr,
                              weight.shape(1), weight.shape(0), weight.shape(2),  cells_in,
                              R,               relu,            terms_a,          terms_b};
  py::gil_scoped_release released;
  return ConvLayer(args, kernels);
}

void add_direct(ProposalConv& conv, const py::array& weight, const py::array& bias, const py::array& neighbours,
                const py::array& cell_weights, int64_t cells_in, int terms_a, int terms_b) {
  conv.add(direct_layer(weight, bias, neighbours, cell_weights, cells_in, true, conv.kernels(), terms_a, terms_b));
}

void add_cell_runs(ProposalConv& conv, const py::array& weight, const py::array& bias, const py::array& cell_weights,
                   int64_t cells_in, const py::array& slots, const py::array& outputs, const py::array& starts,
                   const py::array& tile_taps, const py::array& tap_offsets, int64_t stride) {
  check_array<float>(weight, "weight", "float32 [C_out, C_in, taps]", 3);
  check_array<float>(bias, "bias", "float32 [C_out]", 1);
  check_array<float>(cell_weights, "cell_weights", "float32 [R]", 1);
  check_array<int32_t>(slots, "slots", "int32 [slots]", 1);
  check_array<int32_t>(outputs, "outputs", "int32 [tiles, 16]", 2);
  check_array<int32_t>(starts, "starts", "int32 [tiles]", 1);
  check_array<bool>(tile_taps, "tile_taps", "bool [tiles, taps]", 2);
  check_array<int32_t>(tap_offsets, "tap_offsets", "int32 [taps]", 1);
  const py::ssize_t R = cell_weights.shape(0), tiles = outputs.shape(0), taps = weight.shape(2);
  check_shape(bias, "bias", "float32", {weight.shape(0)});
  MMN_CHECK(tiles % 2 == 0, "outputs: expected an even number of tiles, got ", tiles);
  check_shape(outputs, "outputs", "int32", {tiles, kRunCells});
  check_shape(starts, "starts", "int32", {tiles});
  check_shape(tile_taps, "tile_taps", "bool", {tiles, taps});
  check_shape(tap_offsets, "tap_offsets", "int32", {taps});
  check_rows(slots, "slots", cells_in);
  check_rows(outputs, "outputs", R);
  check_covered(outputs, R);
  const bool* needed = static_cast<const bool*>(tile_taps.data());
  for (py::ssize_t tile = 0; tile < tiles; ++tile) {
    const int32_t* cells = ints(outputs) + tile * kRunCells;
    const int64_t count = std::find(cells, cells + kRunCells, -1) - cells;
    MMN_CHECK(std::count(cells, cells + kRunCells, -1) == kRunCells - count, "outputs: expected -1 only past the last cell");
    MMN_CHECK(count > 0 || tile % 2 == 1, "outputs: expected a cell in the first tile of every pair");
    for (py::ssize_t tap = 0; tap < taps; ++tap) {
      if (!needed[tile * taps + tap]) continue;
      const int64_t first = int64_t{ints(starts)[tile]} + ints(tap_offsets)[tap];
      const int64_t last = first + (std::max<int64_t>(count, 1) - 1) * stride;
      MMN_CHECK(0 <= std::min(first, last) && std::max(first, last) < slots.shape(0), "starts: expected slots below ",
                slots.shape(0), ", got ", first, " to ", last);
    }
  }
  const ConvLayerArgs layer = {floats(weight),  floats(bias), nullptr,  floats(cell_weights), weight.shape(1),
                               weight.shape(0), taps,         cells_in, R,                    true,
                               1,               1};
  const CellRunsArgs runs = {ints(slots),       ints(outputs), ints(starts), needed, ints(tap_offsets), slots.shape(0),
                             tiles,             stride};
  conv.add(ConvLayer(layer, runs, conv.kernels()));
}

void add_tiled(ProposalConv& conv, int64_t c_in, const py::array& bias, const py::array& cell_weights,
               int64_t cells_in, const py::array& bt, const py::array& at, const py::array& inputs,
               const py::array& outputs, int terms_a, int terms_b) {
  check_terms(terms_a, terms_b);
  check_array<float>(bias, "bias", "float32 [C_out]", 1);
  check_array<float>(cell_weights, "cell_weights", "float32 [R]", 1);
  check_array<float>(bt, "bt", "float32 [tile, tile]", 2);
  check_array<float>(at, "at", "float32 [m, tile]", 2);
  check_array<int32_t>(inputs, "inputs", "int32 [tiles, tile * tile]", 2);
  check_array<int32_t>(outputs, "outputs", "int32 [tiles, m * m]", 2);
  const py::ssize_t R = cell_weights.shape(0), tile = bt.shape(0), m = at.shape(0), tiles = inputs.shape(0);
  MMN_CHECK(tile == 8 || tile == kSpectralTile, "bt: expected 8 or 16 rows, got ", tile);
  MMN_CHECK(m <= tile, "at: expected at most ", tile, " rows, got ", m);
  check_shape(bt, "bt", "float32", {tile, tile});
  check_shape(at, "at", "float32", {m, tile});
  check_shape(inputs, "inputs", "int32", {tiles, tile * tile});
  check_shape(outputs, "outputs", "int32", {tiles, m * m});
  check_rows(inputs, "inputs", cells_in);
  check_rows(outputs, "outputs", R);
  check_covered(outputs, R);
  const ConvLayerArgs layer = {nullptr, floats(bias), nullptr, floats(cell_weights), c_in, bias.shape(0),
                               0,       cells_in,     R,       true,                 terms_a, terms_b};
  const TilingArgs tiling = {floats(bt), floats(at), ints(inputs), ints(outputs), tile, m, tiles,
                             tile == kSpectralTile};
  conv.add(ConvLayer(layer, tiling, conv.kernels()));
}

void pack_points(ProposalConv& conv, const py::array& points, int64_t first, int threads) {
  check_threads(threads);
  check_array<float>(points, "points", "float32 [points, channels, C_in]", 3);
  MMN_CHECK(!conv.layers().empty() && conv.layers().back().points() > 0, "points: expected a tiled layer to take them");
  ConvLayer& layer = conv.layers().back();
  const py::ssize_t channels = points.shape(1);
  check_shape(points, "points", "float32", {layer.points(), channels, layer.c_in()});
  MMN_CHECK(first % kRowPad == 0 && first >= 0 && first + channels <= layer.c_out(),
            "first: expected a multiple of ", kRowPad, " that leaves ", channels, " channels, got ", first);
  py::gil_scoped_release released;
  layer.pack_points(floats(points), first, channels, threads);
}

// inputs [B, R_0, C_0] -> out [B, P, C].
void run_conv(const ProposalConv& conv, const py::array& inputs, py::array& out, int threads) {
  MMN_CHECK(!conv.layers().empty(), "proposal_conv: expected at least one layer");
  check_array<float>(inputs, "inputs", "float32 [B, R, C]", 3);
  check_array<float>(out, "out", "float32 [B, P, C]", 3, true);
  const ConvLayer &head = conv.layers().front(), &tail = conv.layers().back();
  const py::ssize_t B = inputs.shape(0);
  check_shape(inputs, "inputs", "float32", {B, head.cells_in(), head.c_in()});
  check_shape(out, "out", "float32", {B, tail.cells(), tail.c_out()});
  check_disjoint(out, inputs, "inputs");
  check_threads(threads);
  const float* in = floats(inputs);
  float* to = static_cast<float*>(out.mutable_data());
  py::gil_scoped_release released;
  ConvScratchPool::Lease scratch(conv.scratch());
  const int64_t in_width = padded_width(head.c_in());
  for (int64_t first = 0; first < B; first += kVideosAtOnce) {
    const int64_t batch = std::min<int64_t>(kVideosAtOnce, B - first);
    const float* rows = conv.run(batch, threads, *scratch, [&](float* filled) {
      for (int64_t i = 0; i < head.cells_in() * batch; ++i) {
        const float* row = in + ((first + i % batch) * head.cells_in() + i / batch) * head.c_in();
        std::fill(std::copy_n(row, head.c_in(), filled + i * in_width), filled + (i + 1) * in_width, 0.0f);
      }
    });
    for (int64_t i = 0; i < tail.cells() * batch; ++i) {
      std::copy_n(rows + i * tail.width(), tail.c_out(),
                  to + ((first + i % batch) * tail.cells() + i / batch) * tail.c_out());
    }
  }
}

using MapConv = std::tuple<py::array, py::array, py::array>;

std::unique_ptr<VideoEncoder> make_encoder(std::shared_ptr<ProposalConv> conv, const py::array& clip_weight,
                                           const py::array& clip_bias, int64_t pre_clips, int64_t kernel,
                                           int64_t stride, const py::array& heads_weight, const py::array& heads_bias,
                                           int64_t joint, const std::optional<py::array>& cells,
                                           const std::vector<MapConv>& map_convs,
                                           const std::optional<py::array>& map_rows) {
  MMN_CHECK(!conv->layers().empty(), "conv: expected at least one layer");
  check_array<float>(clip_weight, "clip_weight", "float32 [C, D]", 2);
  check_array<float>(clip_bias, "clip_bias", "float32 [C]", 1);
  check_shape(clip_bias, "clip_bias", "float32", {clip_weight.shape(0)});
  MMN_CHECK(kernel >= 1 && stride >= 1 && pre_clips >= kernel, "kernel: expected 1 to ", pre_clips, ", got ", kernel);
  const int64_t joint_padded = padded_width(joint), C = conv->layers().back().c_out();
  check_array<float>(heads_weight, "heads_weight", "float32 [2 J', C], J' = J padded to 32", 2);
  check_array<float>(heads_bias, "heads_bias", "float32 [2 J']", 1);
  check_shape(heads_weight, "heads_weight", "float32", {2 * joint_padded, C});
  check_shape(heads_bias, "heads_bias", "float32", {2 * joint_padded});
  MMN_CHECK(cells.has_value() != map_rows.has_value(), "cells: expected either cells or map_rows");
  const ClipPoolWeights clip_pool = {floats(clip_weight), floats(clip_bias), clip_weight.shape(1), clip_weight.shape(0),
                                  pre_clips,           kernel,            stride};
  const HeadsWeights heads = {floats(heads_weight), floats(heads_bias), C, joint, joint_padded};
  const int64_t inputs = conv->layers().front().cells_in();
  if (cells) {
    check_array<int32_t>(*cells, "cells", "int32 [R, 2]", 2);
    check_shape(*cells, "cells", "int32", {inputs, 2});
    return std::make_unique<VideoEncoder>(std::move(conv), clip_pool, ints(*cells), heads);
  }
  check_array<int32_t>(*map_rows, "map_rows", "int32 [R]", 1);
  check_shape(*map_rows, "map_rows", "int32", {inputs});
  std::vector<ConvLayer> layers;
  int64_t cells_in = (pre_clips - kernel) / stride + 1;
  for (const auto& [weight, bias, neighbours] : map_convs) {
    layers.push_back(direct_layer(weight, bias, neighbours, std::nullopt, cells_in, false, conv->kernels()));
    MMN_CHECK(layers.back().c_in() == clip_pool.c && layers.back().c_out() == clip_pool.c,
              "map_convs: expected ", clip_pool.c, " channels in and out");
    cells_in = layers.back().cells();
  }
  return std::make_unique<VideoEncoder>(std::move(conv), clip_pool, std::move(layers), ints(*map_rows), heads);
}

void run_encoder(const VideoEncoder& encoder, const py::array& pre_clips, py::array& contrastive, py::array& iou,
                 int threads) {
  check_array<float>(pre_clips, "pre_clips", "float32 [B, T, D]", 3);
  check_array<float>(contrastive, "contrastive", "float32 [B, P, J]", 3, true);
  check_array<float>(iou, "iou", "float32 [B, P, J]", 3, true);
  const py::ssize_t B = pre_clips.shape(0);
  check_shape(pre_clips, "pre_clips", "float32", {B, encoder.pre_clips(), encoder.input_size()});
  check_shape(contrastive, "contrastive", "float32", {B, encoder.proposals(), encoder.joint()});
  check_shape(iou, "iou", "float32", {B, encoder.proposals(), encoder.joint()});
  check_disjoint(contrastive, iou, "iou");
  check_threads(threads);
  const float* in = floats(pre_clips);
  float *first = static_cast<float*>(contrastive.mutable_data()), *second = static_cast<float*>(iou.mutable_data());
  py::gil_scoped_release released;
  encoder.run(in, B, first, second, threads);
}

}  // namespace

void register_video_encoder(py::module_& m) {
  py::class_<ProposalConv, std::shared_ptr<ProposalConv>>(
      m, "ProposalConv", "The stacked layers over the 2D map's needed cells; see csrc/ops/proposal_conv.h.")
      .def(py::init([](const std::optional<std::string>& isa) { return std::make_shared<ProposalConv>(isa_of(isa)); }),
           py::arg("isa") = py::none())
      .def("add_direct", &add_direct, py::arg("weight").noconvert(), py::arg("bias").noconvert(),
           py::arg("neighbours").noconvert(), py::arg("cell_weights").noconvert(), py::arg("cells_in"),
           py::arg("terms_a") = 0, py::arg("terms_b") = 0,
           "Adds a layer that multiplies tap by tap.")
      .def("add_cell_runs", &add_cell_runs, py::arg("weight").noconvert(), py::arg("bias").noconvert(),
           py::arg("cell_weights").noconvert(), py::arg("cells_in"), py::arg("slots").noconvert(),
           py::arg("outputs").noconvert(), py::arg("starts").noconvert(), py::arg("tile_taps").noconvert(),
           py::arg("tap_offsets").noconvert(), py::arg("stride"),
           "Adds a layer that multiplies bf16 over runs of cells; see csrc/cpu/kernels/products/run_products.h.")
      .def("add_tiled", &add_tiled, py::arg("c_in"), py::arg("bias").noconvert(), py::arg("cell_weights").noconvert(),
           py::arg("cells_in"), py::arg("bt").noconvert(), py::arg("at").noconvert(), py::arg("inputs").noconvert(),
           py::arg("outputs").noconvert(), py::arg("terms_a") = 0, py::arg("terms_b") = 0,
           "Adds a layer that multiplies in a transform's domain; pack_points takes its weights.")
      .def("pack_points", &pack_points, py::arg("points").noconvert(), py::arg("first"),
           py::arg("threads"),
           "Packs the transformed weights of some output channels of the last added layer.")
      .def("packed_bytes",
           [](const ProposalConv& conv) {
             std::vector<int64_t> bytes;
             for (const ConvLayer& layer : conv.layers()) bytes.push_back(layer.packed_bytes());
             return bytes;
           },
           "Memory of each layer's packed weights.")
      .def("run", &run_conv, py::arg("inputs").noconvert(), py::arg("out").noconvert(), py::arg("threads"),
           "Fills out [B, P, C] from inputs [B, R_0, C_0].");
  py::class_<VideoEncoder>(m, "VideoEncoder", "The whole video branch; see csrc/cpu/video_encoder.h.")
      .def(py::init(&make_encoder), py::arg("conv"), py::arg("clip_weight").noconvert(),
           py::arg("clip_bias").noconvert(), py::arg("pre_clips"), py::arg("kernel"), py::arg("stride"),
           py::arg("heads_weight").noconvert(), py::arg("heads_bias").noconvert(), py::arg("joint"),
           py::arg("cells") = py::none(), py::arg("map_convs") = std::vector<MapConv>(),
           py::arg("map_rows") = py::none())
      .def("run", &run_encoder, py::arg("pre_clips").noconvert(), py::arg("contrastive").noconvert(),
           py::arg("iou").noconvert(), py::arg("threads"),
           "Fills contrastive and iou [B, P, J], unit norm, from pre_clips [B, T, D].");
}

}  // namespace mmn_fast
