// The few calls of the CUDA runtime that operators need around a launch. Without CUDA in the build
// every one of them says so; nothing here runs when the module is imported.
#pragma once

#include <stdexcept>

#include "kernels/host_device.h"

namespace sdrt {

// The machine's or the build's fault, not the caller's; becomes RuntimeError.
struct DeviceError : std::runtime_error {
    using std::runtime_error::runtime_error;
};

int current_device();
void set_device(int device);
void restore_device(int device) noexcept;
void raise_launch_error();

// Ordinal of the device that this address belongs to.
int device_of(const void* address);

// Makes a device current, and the former one again when it goes.
class DeviceGuard {
  public:
    explicit DeviceGuard(int device) : before_(current_device()) { set_device(device); }
    ~DeviceGuard() { restore_device(before_); }
    DeviceGuard(const DeviceGuard&) = delete;
    DeviceGuard& operator=(const DeviceGuard&) = delete;

  private:
    int before_;
};

template <typename Launch>
void launch(const Launch& body) {
    body();
    raise_launch_error();
}

}  // namespace sdrt
