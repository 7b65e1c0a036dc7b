// CUDA as autograd and the attention dispatcher see it, without CUDA: one device, one stream, events that do
// nothing. It is loaded before torch, so that a CPU build runs backward passes of fake tensors that claim to be on
// CUDA. Which attention kernel a card has is read from the environment.
#include <ATen/SDPBackend.h>
#include <ATen/core/TensorBase.h>
#include <ATen/detail/CUDAHooksInterface.h>
#include <ATen/native/DispatchStub.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>

#include <cstdlib>
#include <optional>

// As in ATen/native/transformers/attention.h, which takes four times as long to compile. A Tensor is a TensorBase
// with more functions and no more data.
namespace at {
class Tensor;
namespace native {
using fused_sdp_choice_fn = int64_t (*)(const Tensor&, const Tensor&, const Tensor&, const std::optional<Tensor>&,
                                        double, bool, std::optional<double>, bool);
DECLARE_DISPATCH(fused_sdp_choice_fn, _fused_sdp_choice_stub)
}  // namespace native
}  // namespace at

using c10::Device;
using c10::DeviceIndex;
using c10::DeviceType;
using c10::Stream;

namespace {

struct OneDevice final : c10::impl::DeviceGuardImplInterface {
  static constexpr DeviceType static_type = DeviceType::CUDA;
  Device one() const { return Device(DeviceType::CUDA, 0); }
  DeviceType type() const override { return DeviceType::CUDA; }
  Device exchangeDevice(Device) const override { return one(); }
  Device getDevice() const override { return one(); }
  void setDevice(Device) const override {}
  void uncheckedSetDevice(Device) const noexcept override {}
  Stream getStream(Device) const noexcept override { return Stream(Stream::DEFAULT, one()); }
  Stream getDefaultStream(Device) const override { return Stream(Stream::DEFAULT, one()); }
  Stream getNewStream(Device, int) const override { return Stream(Stream::DEFAULT, one()); }
  Stream exchangeStream(Stream) const noexcept override { return Stream(Stream::DEFAULT, one()); }
  DeviceIndex deviceCount() const noexcept override { return 1; }
  void record(void**, const Stream&, const DeviceIndex, const c10::EventFlag) const override {}
  void block(void*, const Stream&) const override {}
  bool queryEvent(void*) const override { return true; }
  void destroyEvent(void*, const DeviceIndex) const noexcept override {}
  bool queryStream(const Stream&) const override { return true; }
  void synchronizeStream(const Stream&) const override {}
};

OneDevice guard;
c10::impl::DeviceGuardImplRegistrar registrar(DeviceType::CUDA, &guard);

// The order and the rules of sdp_utils.cpp for CUDA: flash takes 16-bit types without a mask from sm80 on and fewer
// key heads as they are; the memory-efficient kernel takes a mask, but no fewer key heads, and no bfloat16 before
// sm80; the plain matrix products take whatever is left.
int64_t choose(const at::Tensor& query_, const at::Tensor& key_, const at::Tensor&,
               const std::optional<at::Tensor>& mask_, double, bool, std::optional<double>, bool enable_gqa) {
  static const bool sm80 = std::atoi(std::getenv("LLAMA_PEFT_REHEARSED_SM")) >= 80;
  const auto& query = reinterpret_cast<const at::TensorBase&>(query_);
  const auto& key = reinterpret_cast<const at::TensorBase&>(key_);
  const auto& mask = reinterpret_cast<const std::optional<at::TensorBase>&>(mask_);
  const auto type = query.scalar_type();
  const bool half = type == at::kHalf, brain = type == at::kBFloat16;
  const bool fewer_keys = enable_gqa && query.size(1) != key.size(1);
  const bool has_mask = mask.has_value() && mask->defined();
  if (sm80 && (half || brain) && !has_mask && query.size(-1) <= 256)
    return static_cast<int64_t>(at::SDPBackend::flash_attention);
  if ((half || type == at::kFloat || (brain && sm80)) && !fewer_keys)
    return static_cast<int64_t>(at::SDPBackend::efficient_attention);
  return static_cast<int64_t>(at::SDPBackend::math);
}

const bool chosen = (at::native::_fused_sdp_choice_stub.set_cuda_dispatch_ptr(&choose), true);

}  // namespace

struct CUDAHooks : at::CUDAHooksInterface {
  explicit CUDAHooks(at::CUDAHooksArgs) {}
  void init() const override {}
  bool hasCUDA() const override { return true; }
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasPrimaryContext(DeviceIndex) const override { return true; }
  DeviceIndex deviceCount() const override { return 1; }
  int getNumGPUs() const override { return 1; }
  DeviceIndex current_device() const override { return 0; }
  DeviceIndex getCurrentDevice() const override { return 0; }
  bool isPinnedPtr(const void*) const override { return false; }
  void deviceSynchronize(DeviceIndex) const override {}
};

namespace at {
using ::CUDAHooks;
C10_REGISTER_CLASS(CUDAHooksRegistry, CUDAHooks, CUDAHooks)
}  // namespace at
