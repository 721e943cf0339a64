// The direct loop over runs of cells on AMX tiles. See run_products.h. Include gemm_tiles-inl.h first.
//
// Tiles 0 and 1 hold the left run's sums, 2 and 3 the right run's, 4 and 5 weights, 6 left inputs, 7 right inputs.
namespace mmn_fast::MMN_ISA {
namespace {

constexpr int64_t kRunChunk = 1 << 17;  // weights, in bf16 values, that all pairs go through together: 256 KB

// Configures the rows of the tiles for both runs, only if they changed: it takes as long as ten tile products.
struct RunTiles {
  int32_t left = 0, right = 0;

  void configure(const RunPair& pair) {
    const int32_t other = pair.cells[1] > 0 ? pair.cells[1] : 1;
    if (left == pair.cells[0] && right == other) return;
    left = pair.cells[0];
    right = other;
    TileConfig config;
    config.rows[0] = config.rows[1] = config.rows[6] = static_cast<uint8_t>(left);
    config.rows[2] = config.rows[3] = config.rows[7] = static_cast<uint8_t>(right);
    _tile_loadconfig(&config);
  }
};

// Prefetches the next weights from memory, a few cache lines at a time.
struct Ahead {
  const uint16_t* next;
  int64_t lines;

  void fetch() {
    for (int64_t line = 0; line < lines; ++line, next += 32) __builtin_prefetch(next, 0, 2);
  }
};

// sums += products of one pair over `steps` steps.
void multiply_runs(const RunProductsArgs& args, const RunPair& pair, const uint16_t* inputs, const uint16_t* weights,
                   int64_t steps, Ahead& ahead) {
  const int64_t stride = args.stride * kRunStep * static_cast<int64_t>(sizeof(uint16_t));
  const RunTap* const both = args.taps + pair.first;
  const RunTap *const left = both + pair.both, *const right = left + pair.left_only, *const end = right + pair.right_only;
  for (int64_t step = 0; step < steps; ++step, inputs += args.slots * kRunStep, weights += args.num_taps * kPair) {
    for (const RunTap* t = both; t != left; ++t) {
      const uint16_t* b = weights + t->tap * kPair;
      ahead.fetch();
      _tile_loadd(4, b, 2 * kStep);
      _tile_loadd(6, inputs + t->left * kRunStep, stride);
      _tile_dpbf16ps(0, 6, 4);
      _tile_loadd(7, inputs + t->right * kRunStep, stride);
      _tile_dpbf16ps(2, 7, 4);
      _tile_loadd(5, b + kTile, 2 * kStep);
      _tile_dpbf16ps(1, 6, 5);
      _tile_dpbf16ps(3, 7, 5);
    }
    for (const RunTap* t = left; t != right; ++t) {
      const uint16_t* b = weights + t->tap * kPair;
      ahead.fetch();
      _tile_loadd(4, b, 2 * kStep);
      _tile_loadd(6, inputs + t->left * kRunStep, stride);
      _tile_dpbf16ps(0, 6, 4);
      _tile_loadd(5, b + kTile, 2 * kStep);
      _tile_dpbf16ps(1, 6, 5);
    }
    for (const RunTap* t = right; t != end; ++t) {
      const uint16_t* b = weights + t->tap * kPair;
      ahead.fetch();
      _tile_loadd(4, b, 2 * kStep);
      _tile_loadd(7, inputs + t->right * kRunStep, stride);
      _tile_dpbf16ps(2, 7, 4);
      _tile_loadd(5, b + kTile, 2 * kStep);
      _tile_dpbf16ps(3, 7, 5);
    }
  }
}

void finish_run(const RunProductsArgs& args, const RunPair& pair, int side, const float (*sums)[kPairRows], int64_t video,
                int64_t column) {
  const __m512 zero = _mm512_setzero_ps();
  for (int64_t half = 0; half < kPairRows; half += 16) {
    const __m512 bias = _mm512_loadu_ps(args.bias + column + half);
    for (int32_t i = 0; i < pair.cells[side]; ++i) {
      const int64_t cell = pair.outputs[side][i];
      __m512 x = _mm512_add_ps(_mm512_load_ps(sums[i] + half), bias);
      if (args.relu) x = _mm512_max_ps(zero, x);  // returns its second operand on NaN
      x = _mm512_mul_ps(x, _mm512_set1_ps(args.cell_weights[cell]));
      _mm512_storeu_ps(args.out + (cell * args.batch + video) * args.out_stride + column + half, x);
    }
  }
}

void load_sums(const float (*sums)[kPairRows]) {
  _tile_loadd(0, sums[0], sizeof sums[0]);
  _tile_loadd(1, sums[0] + 16, sizeof sums[0]);
  _tile_loadd(2, sums[kRunCells], sizeof sums[0]);
  _tile_loadd(3, sums[kRunCells] + 16, sizeof sums[0]);
}

void store_sums(float (*sums)[kPairRows]) {
  _tile_stored(0, sums[0], sizeof sums[0]);
  _tile_stored(1, sums[0] + 16, sizeof sums[0]);
  _tile_stored(2, sums[kRunCells], sizeof sums[0]);
  _tile_stored(3, sums[kRunCells] + 16, sizeof sums[0]);
}

// Computes pairs [first, last) of every video, for one panel of 32 columns. All pairs go through a few steps together, so
// that these steps' weights, inputs and sums stay in the second-level cache while the next weights come.
void run_products(const RunProductsArgs& args, int64_t panel, int64_t first, int64_t last) {
  if (first == last) return;
  const int64_t step_weights = args.num_taps * kPair, step_inputs = args.slots * kRunStep;
  int64_t fetches = 0;  // prefetches in one step
  for (int64_t p = first; p < last; ++p) {
    fetches += args.pairs[p].both + args.pairs[p].left_only + args.pairs[p].right_only;
  }
  const int64_t lines = step_weights / 32, fetched = fetches > 0 ? (lines + fetches - 1) / fetches : 0;
  const int64_t chunk = step_weights < kRunChunk ? kRunChunk / step_weights : 1;
  RunTiles tiles;
  for (int64_t video = 0; video < args.batch; ++video) {
    const uint16_t* const inputs = args.inputs + video * args.steps * step_inputs;
    const uint16_t* const weights = args.weights + panel * args.steps * step_weights;
    for (int64_t step = 0; step < args.steps; step += chunk) {
      const int64_t steps = args.steps - step < chunk ? args.steps - step : chunk;
      Ahead ahead = {weights + (step + steps) * step_weights, fetched};
      for (int64_t p = first; p < last; ++p) {
        const RunPair& pair = args.pairs[p];
        auto* const sums = reinterpret_cast<float(*)[kPairRows]>(args.sums + (p - first) * kRunSums);
        tiles.configure(pair);
        if (step == 0) {
          _tile_zero(0);
          _tile_zero(1);
          _tile_zero(2);
          _tile_zero(3);
        } else {
          load_sums(sums);
        }
        multiply_runs(args, pair, inputs + step * step_inputs, weights + step * step_weights, steps, ahead);
        store_sums(sums);
        if (step + steps < args.steps) continue;
        finish_run(args, pair, 0, sums, video, panel * kPairRows);
        finish_run(args, pair, 1, sums + kRunCells, video, panel * kPairRows);
      }
    }
  }
  _tile_release();
}

// Fills slots [first, last) of all videos.
void fill_slots(const FillSlotsArgs& args, int64_t first, int64_t last) {
  for (int64_t slot = first; slot < last; ++slot) {
    const int64_t row = args.rows[slot];
    for (int64_t video = 0; video < args.batch; ++video) {
      uint16_t* to = args.inputs + (video * args.steps * args.slots + slot) * kRunStep;
      const float* from = row < 0 ? nullptr : args.in + (row * args.batch + video) * args.in_stride;
      for (int64_t step = 0; step < args.steps; ++step, to += args.slots * kRunStep) {
        const int64_t left = args.channels - step * kRunStep;
        if (from == nullptr) {
          _mm512_storeu_si512(to, _mm512_setzero_si512());
        } else {
          pack_split_row<1>(from + step * kRunStep, left < kRunStep ? left : kRunStep, 1, to);
        }
      }
    }
  }
}

}  // namespace
}  // namespace mmn_fast::MMN_ISA
