// fourier_tiles and fourier_cells on a CUDA device; see ops/gpu.
#include "cuda/device/fourier_bodies.h"
#include "cuda/launch.h"

namespace mmn_fast {

void launch_fourier_tiles(const FourierTilesArgs& args, int device, void* stream) {
  run_fourier_tiles(args, CudaRunner("fourier_tiles", device, stream));
}

void launch_fourier_cells(const FourierCellsArgs& args, int device, void* stream) {
  run_fourier_cells(args, CudaRunner("fourier_cells", device, stream));
}

}  // namespace mmn_fast
