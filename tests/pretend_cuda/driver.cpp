// What autograd and torch's C++ code ask of CUDA: a guard that switches nothing, and hooks that say that there is one card.
#include <ATen/detail/CUDAHooksInterface.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>

namespace {

constexpr auto CUDA = c10::DeviceType::CUDA;
const c10::Device card(CUDA, 0);

struct Guard : c10::impl::NoOpDeviceGuardImpl<CUDA> {
  c10::Device getDevice() const override { return card; }
  c10::Device exchangeDevice(c10::Device) const override { return card; }
  c10::Stream getStream(c10::Device) const noexcept override { return c10::Stream(c10::Stream::DEFAULT, card); }
  c10::Stream exchangeStream(c10::Stream) const noexcept override { return c10::Stream(c10::Stream::DEFAULT, card); }
};

struct Hooks : at::CUDAHooksInterface {
  void init() const override {}
  bool hasCUDA() const override { return true; }
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
  int getNumGPUs() const override { return 1; }
  c10::DeviceIndex deviceCount() const override { return 1; }
  c10::DeviceIndex getCurrentDevice() const override { return 0; }
  c10::DeviceIndex current_device() const override { return 0; }
  c10::DeviceIndex exchangeDevice(c10::DeviceIndex) const override { return 0; }
  c10::DeviceIndex maybeExchangeDevice(c10::DeviceIndex) const override { return 0; }
};

void*& functions_of(const void* object) { return *static_cast<void**>(const_cast<void*>(object)); }

}  // namespace

// torch made its hooks when it was imported, and keeps that object for good: the object gets our table of virtual
// functions, and its own one back.
extern "C" void set_pretended(int on) {
  static Guard guard;
  static Hooks hooks;
  const void* torchs = dynamic_cast<const void*>(&at::detail::getCUDAHooks());
  static void* const original = functions_of(torchs);
  functions_of(torchs) = on ? functions_of(dynamic_cast<const void*>(&hooks)) : original;
  c10::impl::device_guard_impl_registry[static_cast<size_t>(CUDA)].store(on ? &guard : nullptr);
}
