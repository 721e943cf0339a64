// proposal_conv on the CPU: its layers one after the other. See ops/proposal_conv.h.
#pragma once

#include <array>
#include <atomic>
#include <memory>
#include <vector>

#include "cpu/conv_layer.h"
#include "cpu/isa/isa.h"

namespace mmn_fast {

// Lends scratch memory to each call and takes it back, so that calls of several threads do not share memory. Up to kKept
// calls at a time allocate nothing once their memory has grown. There is no lock, because a forked child could inherit it
// locked.
class ConvScratchPool {
 public:
  ConvScratchPool() = default;
  ~ConvScratchPool();
  ConvScratchPool(const ConvScratchPool&) = delete;
  ConvScratchPool& operator=(const ConvScratchPool&) = delete;

  class Lease {
   public:
    explicit Lease(ConvScratchPool& pool) : pool_(pool), scratch_(pool.take()) {}
    ~Lease() { pool_.give_back(std::move(scratch_)); }
    Lease(const Lease&) = delete;
    Lease& operator=(const Lease&) = delete;
    ConvScratch& operator*() { return *scratch_; }

   private:
    ConvScratchPool& pool_;
    std::unique_ptr<ConvScratch> scratch_;
  };

 private:
  std::unique_ptr<ConvScratch> take();
  void give_back(std::unique_ptr<ConvScratch> scratch);

  static constexpr int kKept = 64;
  std::array<std::atomic<ConvScratch*>, kKept> free_{};
};

// Videos that share one pass over the weights. More videos take more memory; results do not depend on the number.
constexpr int64_t kVideosAtOnce = 16;

class ProposalConv {
 public:
  explicit ProposalConv(CpuIsa isa);

  // Layers run in the order of their addition. Throws std::invalid_argument if the layer does not fit the last one.
  ConvLayer& add(ConvLayer layer);

  // Calls fill(rows) with the padded rows of the input to write, [cells_in * batch, padded c_in], then runs all layers.
  // Returns the last layer's rows, which live in `scratch`.
  template <class Fill>
  const float* run(int64_t batch, int threads, ConvScratch& scratch, Fill&& fill) const {
    fill(input_rows(batch, scratch));
    return run_layers(batch, threads, scratch);
  }

  const CpuKernels& kernels() const { return kernels_; }
  ConvScratchPool& scratch() const { return scratch_; }
  const std::vector<ConvLayer>& layers() const { return layers_; }
  std::vector<ConvLayer>& layers() { return layers_; }
  int64_t packed_bytes() const;

 private:
  float* input_rows(int64_t batch, ConvScratch& scratch) const;
  const float* run_layers(int64_t batch, int threads, ConvScratch& scratch) const;

  const CpuKernels kernels_;
  std::vector<ConvLayer> layers_;
  mutable ConvScratchPool scratch_;
};

}  // namespace mmn_fast
