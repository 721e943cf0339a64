// Checks of CUDA calls; an error is a sentence that names the op.
#pragma once

#include <cuda_runtime_api.h>

#include <stdexcept>
#include <string>

namespace mmn_fast {

inline void cuda_check(cudaError_t status, const char* op) {
  if (status == cudaSuccess) return;
  static_cast<void>(cudaGetLastError());  // clears the error, else the next launch would report it
  throw std::runtime_error(std::string(op) + ": CUDA says " + cudaGetErrorName(status) + ": " +
                           cudaGetErrorString(status));
}

// Makes a device current for a launch. The runtime is linked statically, so its current device is not torch's. If CUDA
// refuses, the error names `op`.
class DeviceGuard {
 public:
  DeviceGuard(const char* op, int device) {
    cuda_check(cudaGetDevice(&previous_), op);
    cuda_check(cudaSetDevice(device), op);
  }
  ~DeviceGuard() { static_cast<void>(cudaSetDevice(previous_)); }
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;

 private:
  int previous_ = 0;
};

}  // namespace mmn_fast
