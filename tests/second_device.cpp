// A device of its own for PyTorch that computes on the CPU: whatever mixes it with the CPU is refused, as on a
// GPU. Its memory is the host's, so every operation runs on CPU tensors that share it.

#include <ATen/EmptyTensor.h>
#include <ATen/detail/PrivateUse1HooksInterface.h>
#include <ATen/native/CPUFallback.h>
#include <ATen/native/TensorShape.h>
#include <ATen/ops/_reshape_alias_native.h>
#include <ATen/ops/as_strided_native.h>
#include <ATen/ops/unfold_native.h>
#include <ATen/ops/view_native.h>
#include <c10/core/Allocator.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <torch/extension.h>

using at::Tensor;
using c10::Device;
using Sizes = at::IntArrayRef;
using SymSizes = c10::SymIntArrayRef;

namespace {

const auto TYPE = c10::DeviceType::PrivateUse1;
const Device HERE(TYPE, 0);

struct Guard final : c10::impl::DeviceGuardImplInterface {
  c10::DeviceType type() const override { return TYPE; }
  Device exchangeDevice(Device) const override { return HERE; }
  Device getDevice() const override { return HERE; }
  void setDevice(Device) const override {}
  void uncheckedSetDevice(Device) const noexcept override {}
  c10::Stream getStream(Device) const override { return c10::Stream(c10::Stream::DEFAULT, HERE); }
  c10::Stream exchangeStream(c10::Stream) const override { return getStream(HERE); }
  c10::DeviceIndex deviceCount() const noexcept override { return 1; }
};
C10_REGISTER_GUARD_IMPL(PrivateUse1, Guard);

void release(void* memory) { free(memory); }

struct Memory final : c10::Allocator {
  c10::DataPtr allocate(size_t bytes) override {
    void* memory = bytes ? aligned_alloc(64, (bytes + 63) / 64 * 64) : nullptr;
    return {memory, memory, &release, HERE};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &release; }
  void copy_data(void* to, const void* from, size_t bytes) const override { memcpy(to, from, bytes); }
};
Memory memory;
REGISTER_ALLOCATOR(TYPE, &memory);

struct Hooks final : at::PrivateUse1HooksInterface {
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
};
Hooks hooks;
const bool registered = (at::RegisterPrivateUse1HooksInterface(&hooks), true);

Tensor on_host(const Tensor& x) {
  if (x.device().type() != TYPE) return x;
  return at::from_blob(const_cast<void*>(x.const_data_ptr()), x.sizes(), x.strides(), x.options().device(at::kCPU));
}

std::optional<Tensor> on_host(const std::optional<Tensor>& x) {
  return x && x->defined() ? std::optional(on_host(*x)) : std::nullopt;
}

Tensor on_device(const Tensor& x) {
  if (!x.defined()) return x;
  Tensor y = at::empty_strided(x.sizes(), x.strides(), x.options().device(HERE));
  on_host(y).copy_(x);
  return y;
}

using Type = std::optional<at::ScalarType>;
using Strided = std::optional<at::Layout>;
using Where = std::optional<Device>;
using Pinned = std::optional<bool>;
const c10::DispatchKeySet KEYS(c10::DispatchKey::PrivateUse1);

Tensor empty(Sizes sizes, Type type, Strided, Where, Pinned, std::optional<at::MemoryFormat> format) {
  return at::detail::empty_generic(sizes, &memory, KEYS, c10::dtype_or_default(type), format);
}

Tensor empty_strided(Sizes sizes, Sizes strides, Type type, Strided, Where, Pinned) {
  return at::detail::empty_strided_generic(sizes, strides, &memory, KEYS, c10::dtype_or_default(type));
}

const Tensor& resized(const Tensor& x, Sizes sizes, std::optional<at::MemoryFormat>) {
  auto* inside = x.unsafeGetTensorImpl();
  inside->set_sizes_contiguous(sizes);
  const size_t bytes = inside->numel() * inside->itemsize();
  auto* storage = x.storage().unsafeGetStorageImpl();
  if (storage->nbytes() < bytes) {
    auto larger = memory.allocate(bytes);
    memcpy(larger.get(), storage->data(), storage->nbytes());
    storage->set_data_ptr_noswap(std::move(larger));
    storage->set_nbytes(bytes);
  }
  return x;
}

Tensor copy_from(const Tensor& from, const Tensor& to, bool) {
  on_host(to).copy_(on_host(from));
  return to;
}

Tensor copy_from_and_resize(const Tensor& from, const Tensor& to) {
  if (to.sizes() != from.sizes()) resized(to, from.sizes(), std::nullopt);
  return copy_from(from, to, false);
}

Tensor& set_storage(Tensor& x, at::Storage storage, int64_t offset, Sizes sizes, Sizes strides) {
  x.unsafeGetTensorImpl()->set_storage_keep_dtype(std::move(storage));
  x.unsafeGetTensorImpl()->set_sizes_and_strides(sizes, strides, offset);
  return x;
}

Tensor& set_whole_storage(Tensor& x, at::Storage storage) {
  const auto elements = static_cast<int64_t>(storage.nbytes() / x.itemsize());
  return set_storage(x, std::move(storage), 0, {elements}, {1});
}

at::Scalar item(const Tensor& x) { return on_host(x).item(); }
Tensor view(const Tensor& x, Sizes sizes) { return at::native::view(x, sizes); }
Tensor alias(const Tensor& x, Sizes sizes, Sizes strides) { return at::native::_reshape_alias(x, sizes, strides); }
Tensor unfold(const Tensor& x, int64_t dim, int64_t size, int64_t step) { return at::native::unfold(x, dim, size, step); }
Tensor as_strided(const Tensor& x, Sizes sizes, Sizes strides, std::optional<int64_t> offset) {
  return at::native::as_strided_tensorimpl(x, sizes, strides, offset);
}

void check_together(const Tensor& x, const Tensor& y) {
  TORCH_CHECK(x.device() == y.device(), "Expected all tensors to be on the same device, not ", x.device(), " and ", y.device());
}

Tensor convolution(
    const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias, SymSizes stride, SymSizes padding,
    SymSizes dilation, bool transposed, SymSizes output_padding, c10::SymInt groups) {
  check_together(x, weight);
  if (bias && bias->defined()) check_together(x, *bias);
  at::AutoDispatchBelowADInplaceOrView below;
  return on_device(at::convolution_symint(
      on_host(x), on_host(weight), on_host(bias), stride, padding, dilation, transposed, output_padding, groups));
}

std::tuple<Tensor, Tensor, Tensor> convolution_backward(
    const Tensor& slope, const Tensor& x, const Tensor& weight, SymSizes stride, SymSizes padding, SymSizes dilation,
    bool transposed, SymSizes output_padding, c10::SymInt groups, std::array<bool, 3> wanted) {
  check_together(x, weight);
  check_together(x, slope);
  at::AutoDispatchBelowADInplaceOrView below;
  const std::vector<c10::SymInt> outputs{slope.sym_size(1)};
  auto [dx, dweight, dbias] = at::convolution_backward_symint(
      on_host(slope), on_host(x), on_host(weight), at::OptionalSymIntArrayRef(outputs), stride, padding, dilation,
      transposed, output_padding, groups, wanted);
  return {on_device(dx), on_device(dweight), on_device(dbias)};
}

void on_cpu(const c10::OperatorHandle& operation, torch::jit::Stack* stack) {
  at::native::cpu_fallback(operation, stack, /*error_on_views=*/true);
}

}  // namespace

TORCH_LIBRARY_IMPL(aten, PrivateUse1, m) {
  m.impl("empty.memory_format", &empty);
  m.impl("empty_strided", &empty_strided);
  m.impl("resize_", &resized);
  m.impl("_copy_from", &copy_from);
  m.impl("_copy_from_and_resize", &copy_from_and_resize);
  m.impl("set_.source_Storage", &set_whole_storage);
  m.impl("set_.source_Storage_storage_offset", &set_storage);
  m.impl("_local_scalar_dense", &item);
  m.impl("view", &view);
  m.impl("_reshape_alias", &alias);
  m.impl("unfold", &unfold);
  m.impl("as_strided", &as_strided);
  m.impl("convolution_overrideable", &convolution);
  m.impl("convolution_backward_overrideable", &convolution_backward);
}

TORCH_LIBRARY_IMPL(_, PrivateUse1, m) { m.fallback(torch::CppFunction::makeFromBoxedFunction<&on_cpu>()); }

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {}
