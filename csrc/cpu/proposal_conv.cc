#include "cpu/proposal_conv.h"

#include <algorithm>

#include "common/check.h"
#include "cpu/isa/kernel_table.h"
#include "cpu/row_layout.h"

namespace mmn_fast {

ConvScratchPool::~ConvScratchPool() {
  for (std::atomic<ConvScratch*>& place : free_) delete place.load();
}

std::unique_ptr<ConvScratch> ConvScratchPool::take() {
  for (std::atomic<ConvScratch*>& place : free_) {
    if (ConvScratch* scratch = place.exchange(nullptr)) return std::unique_ptr<ConvScratch>(scratch);
  }
  return std::make_unique<ConvScratch>();
}

void ConvScratchPool::give_back(std::unique_ptr<ConvScratch> scratch) {
  for (std::atomic<ConvScratch*>& place : free_) {
    ConvScratch* none = nullptr;
    if (place.compare_exchange_strong(none, scratch.get())) {
      static_cast<void>(scratch.release());
      return;
    }
  }
}

ProposalConv::ProposalConv(CpuIsa isa) : kernels_(cpu_kernels(isa)) {}

ConvLayer& ProposalConv::add(ConvLayer layer) {
  if (!layers_.empty()) {
    const ConvLayer& last = layers_.back();
    MMN_CHECK(layer.c_in() == last.c_out() && layer.cells_in() == last.cells(), "layer: expected one that reads ",
              last.cells(), " cells of ", last.c_out(), " channels, got one of ", layer.cells_in(), " cells of ",
              layer.c_in());
  }
  layers_.push_back(std::move(layer));
  return layers_.back();
}

float* ProposalConv::input_rows(int64_t batch, ConvScratch& scratch) const {
  const ConvLayer& first = layers_.front();
  int64_t size = first.cells_in() * padded_width(first.c_in());
  for (const ConvLayer& layer : layers_) size = std::max(size, layer.cells() * layer.width());
  scratch.rows[1].grow(size * batch);
  return scratch.rows[0].grow(size * batch);
}

const float* ProposalConv::run_layers(int64_t batch, int threads, ConvScratch& scratch) const {
  float *in = scratch.rows[0].data(), *out = scratch.rows[1].data();
  for (const ConvLayer& layer : layers_) {
    layer.run(in, padded_width(layer.c_in()), out, layer.cells(), batch, threads, scratch);
    std::swap(in, out);
  }
  return in;
}

int64_t ProposalConv::packed_bytes() const {
  int64_t bytes = 0;
  for (const ConvLayer& layer : layers_) bytes += layer.packed_bytes();
  return bytes;
}

}  // namespace mmn_fast
