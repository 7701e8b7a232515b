// A device named `npu` in host memory: PyTorch's PrivateUse1 back end with every operation carried out by the CPU's
// kernels on the same bytes. What the real device refuses is refused here too. It shows that a program's host code
// is right; it says nothing about Ascend's kernels, their precision or their speed.

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <ATen/EmptyTensor.h>
#include <ATen/autocast_mode.h>
#include <ATen/detail/PrivateUse1HooksInterface.h>
#include <ATen/native/CPUFallback.h>
#include <c10/core/CPUAllocator.h>
#include <c10/core/CachingDeviceAllocator.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <torch/library.h>
#include <unistd.h>

#include <atomic>
#include <cstdlib>
#include <mutex>
#include <unordered_set>

namespace {

constexpr auto kNpu = c10::DeviceType::PrivateUse1;
constexpr int kMaxDevices = 16;

c10::DeviceIndex device_count() {
  const char* text = std::getenv("NPU_SIMULATOR_DEVICES");
  return static_cast<c10::DeviceIndex>(text ? std::atoi(text) : 1);
}

// ------------------------------------------------------------------------------------------------------- memory

thread_local c10::DeviceIndex current_device = 0;

struct Usage {
  std::atomic<int64_t> now{0}, peak{0}, count{0};
};
Usage usage[kMaxDevices];

void account(c10::DeviceIndex device, int64_t bytes) {
  auto& u = usage[device];
  const int64_t now = u.now += bytes;
  u.count += bytes > 0;
  int64_t peak = u.peak;
  while (peak < now && !u.peak.compare_exchange_weak(peak, now)) {
  }
}

// Bytes of host memory that count as device memory until they are released.
struct Block {
  c10::DataPtr memory;
  c10::Storage owner;  // set instead of `memory` where a CPU tensor's bytes become a device tensor's
  c10::DeviceIndex device;
  int64_t bytes;
  ~Block() { account(device, -bytes); }
  static void release(void* block) { delete static_cast<Block*>(block); }
};

void refuse_forked_process() {
  static const pid_t first = getpid();
  TORCH_CHECK(first == getpid(), "Cannot re-initialize NPU in forked subprocess: a loader's worker has touched it");
}

struct NpuAllocator final : c10::DeviceAllocator {
  c10::DataPtr allocate(size_t bytes) override {
    refuse_forked_process();
    auto memory = c10::GetCPUAllocator()->allocate(bytes);
    void* data = memory.get();
    account(current_device, static_cast<int64_t>(bytes));
    auto* block = new Block{std::move(memory), {}, current_device, static_cast<int64_t>(bytes)};
    return {data, block, &Block::release, c10::Device(kNpu, current_device)};
  }
  c10::DeleterFnPtr raw_deleter() const override { return nullptr; }
  void copy_data(void* to, const void* from, size_t bytes) const override { default_copy_data(to, from, bytes); }
  bool initialized() override { return true; }
  void emptyCache(c10::MempoolId_t) override {}
  void recordStream(const c10::DataPtr&, c10::Stream) override {}
  c10::CachingDeviceAllocator::DeviceStats getDeviceStats(c10::DeviceIndex device) override {
    c10::CachingDeviceAllocator::DeviceStats stats;
    for (auto* stat : {&stats.allocated_bytes[0], &stats.reserved_bytes[0], &stats.active_bytes[0]}) {
      stat->current = usage[device].now;
      stat->peak = usage[device].peak;
    }
    stats.allocation[0].allocated = usage[device].count;
    return stats;
  }
  void resetAccumulatedStats(c10::DeviceIndex device) override { usage[device].count = 0; }
  void resetPeakStats(c10::DeviceIndex device) override { usage[device].peak = usage[device].now.load(); }
};
NpuAllocator allocator;
REGISTER_ALLOCATOR(kNpu, &allocator);

// Page-locked memory is ordinary memory whose addresses are remembered.
struct PinnedAllocator final : c10::Allocator {
  static std::unordered_set<const void*>& pinned() {
    static auto* addresses = new std::unordered_set<const void*>();
    return *addresses;
  }
  static std::mutex& lock() {
    static auto* mutex = new std::mutex();
    return *mutex;
  }
  c10::DataPtr allocate(size_t bytes) override {
    void* data = std::malloc(bytes ? bytes : 1);
    std::lock_guard<std::mutex> guard(lock());
    pinned().insert(data);
    return {data, data, &release, c10::kCPU};
  }
  static void release(void* data) {
    std::lock_guard<std::mutex> guard(lock());
    pinned().erase(data);
    std::free(data);
  }
  c10::DeleterFnPtr raw_deleter() const override { return &release; }
  void copy_data(void* to, const void* from, size_t bytes) const override { default_copy_data(to, from, bytes); }
};
PinnedAllocator pinned_allocator;

// -------------------------------------------------------------------------------------------- devices and streams

struct Guard final : c10::impl::DeviceGuardImplInterface {
  c10::DeviceType type() const override { return kNpu; }
  c10::Device exchangeDevice(c10::Device device) const override {
    auto before = getDevice();
    setDevice(device);
    return before;
  }
  c10::Device getDevice() const override { return {kNpu, current_device}; }
  void setDevice(c10::Device device) const override {
    TORCH_CHECK(
        device.index() < device_count(), "invalid NPU index ", int{device.index()}, ", there are ", int{device_count()});
    uncheckedSetDevice(device);
  }
  void uncheckedSetDevice(c10::Device device) const noexcept override {
    if (device.has_index()) current_device = device.index();
  }
  c10::Stream getStream(c10::Device device) const override {
    const auto index = device.has_index() ? device.index() : current_device;
    return c10::Stream(c10::Stream::UNSAFE, {kNpu, index}, streams[index]);
  }
  c10::Stream getDefaultStream(c10::Device device) const override { return c10::Stream(c10::Stream::DEFAULT, device); }
  c10::Stream getNewStream(c10::Device device, int) const override {
    static std::atomic<c10::StreamId> next{1};
    const auto index = device.has_index() ? device.index() : current_device;
    return c10::Stream(c10::Stream::UNSAFE, {kNpu, index}, next++);
  }
  c10::Stream getStreamFromGlobalPool(c10::Device device, bool) const override { return getNewStream(device, 0); }
  c10::Stream exchangeStream(c10::Stream stream) const override {
    auto before = getStream(stream.device());
    streams[stream.device_index()] = stream.id();
    return before;
  }
  // Everything is done when the call returns, so events and synchronisation have nothing to do.
  void record(void** event, const c10::Stream&, const c10::DeviceIndex, const c10::EventFlag) const override {
    *event = const_cast<Guard*>(this);
  }
  void block(void*, const c10::Stream&) const override {}
  bool queryEvent(void*) const override { return true; }
  bool queryStream(const c10::Stream&) const override { return true; }
  void synchronizeStream(const c10::Stream&) const override {}
  void synchronizeEvent(void*) const override {}
  void synchronizeDevice(const c10::DeviceIndex) const override {}
  c10::DeviceIndex deviceCount() const noexcept override { return device_count(); }

  static thread_local c10::StreamId streams[kMaxDevices];
};
thread_local c10::StreamId Guard::streams[kMaxDevices] = {};
C10_REGISTER_GUARD_IMPL(PrivateUse1, Guard);

struct NpuGenerator final : at::CPUGeneratorImpl {
  explicit NpuGenerator(c10::DeviceIndex index) {
    device_ = c10::Device(kNpu, index);
    key_set_ = c10::DispatchKeySet(c10::DispatchKey::PrivateUse1);
  }
};

struct Hooks final : at::PrivateUse1HooksInterface {
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return device_count() > 0; }
  bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
  c10::DeviceIndex deviceCount() const override { return device_count(); }
  void setCurrentDevice(c10::DeviceIndex index) const override { Guard().setDevice({kNpu, index}); }
  c10::DeviceIndex getCurrentDevice() const override { return current_device; }
  c10::DeviceIndex exchangeDevice(c10::DeviceIndex index) const override {
    return Guard().exchangeDevice({kNpu, index}).index();
  }
  c10::DeviceIndex maybeExchangeDevice(c10::DeviceIndex index) const override { return exchangeDevice(index); }
  c10::Allocator* getPinnedMemoryAllocator() const override { return &pinned_allocator; }
  bool isPinnedPtr(const void* data) const override {
    std::lock_guard<std::mutex> guard(PinnedAllocator::lock());
    return PinnedAllocator::pinned().count(data) > 0;
  }
  c10::Device getDeviceFromPtr(void*) const override { return {kNpu, current_device}; }
  const at::Generator& getDefaultGenerator(c10::DeviceIndex index) const override {
    static at::Generator generators[kMaxDevices];
    const auto i = index < 0 ? current_device : index;
    if (!generators[i].defined()) generators[i] = getNewGenerator(i);
    return generators[i];
  }
  at::Generator getNewGenerator(c10::DeviceIndex index) const override {
    return at::make_generator<NpuGenerator>(index < 0 ? current_device : index);
  }
  void resizePrivateUse1Bytes(const c10::Storage& storage, size_t bytes) const override {
    auto fresh = allocator.allocate(bytes);
    std::memcpy(fresh.get(), storage.data(), std::min(bytes, storage.nbytes()));
    auto* impl = storage.unsafeGetStorageImpl();
    impl->set_data_ptr_noswap(std::move(fresh));
    impl->set_nbytes(bytes);
  }
};
const bool hooks_registered = (at::RegisterPrivateUse1HooksInterface(new Hooks()), true);

// ------------------------------------------------------------------------------- the same bytes on host and device

bool on_npu(const at::Tensor& t) { return t.defined() && t.device().type() == kNpu; }

at::Tensor with_storage(c10::Storage storage, c10::DispatchKey key, const at::Tensor& like) {
  auto impl = c10::make_intrusive<at::TensorImpl>(std::move(storage), c10::DispatchKeySet(key), like.dtype());
  impl->set_storage_offset(like.storage_offset());
  impl->set_sizes_and_strides(like.sizes(), like.strides());
  return at::Tensor(std::move(impl));
}

at::Tensor as_host(const at::Tensor& t) {
  if (!on_npu(t)) return t;
  auto* owner = new c10::Storage(t.storage());
  c10::DataPtr data(
      owner->mutable_data(), owner, [](void* p) { delete static_cast<c10::Storage*>(p); }, c10::kCPU);
  c10::Storage storage(
      c10::Storage::use_byte_size_t(), owner->nbytes(), std::move(data), c10::GetCPUAllocator(), true);
  return with_storage(std::move(storage), c10::DispatchKey::CPU, t);
}

at::Tensor as_npu(const at::Tensor& t, c10::Device device) {
  if (!t.defined() || on_npu(t)) return t;
  refuse_forked_process();
  const auto bytes = static_cast<int64_t>(t.storage().nbytes());
  account(device.index(), bytes);
  auto* block = new Block{{}, t.storage(), device.index(), bytes};
  c10::DataPtr data(block->owner.mutable_data(), block, &Block::release, device);
  c10::Storage storage(c10::Storage::use_byte_size_t(), bytes, std::move(data), &allocator, true);
  return with_storage(std::move(storage), c10::DispatchKey::PrivateUse1, t);
}

// A kernel may have given a mutable argument new memory or another shape.
void adopt(const at::Tensor& original, const at::Tensor& view) {
  auto* impl = original.unsafeGetTensorImpl();
  if (view.storage().data() != original.storage().data()) {
    impl->set_storage_keep_dtype(as_npu(view, original.device()).storage());
  }
  if (view.sizes() != original.sizes() || view.strides() != original.strides() ||
      view.storage_offset() != original.storage_offset()) {
    impl->set_storage_offset(view.storage_offset());
    impl->set_sizes_and_strides(view.sizes(), view.strides());
  }
}

// ------------------------------------------------------------------------------------ every operation, by the CPU

// Indexing takes its indices from the host on real devices too.
bool takes_host_tensors(const std::string& name) { return name.find("index") != std::string::npos; }

struct Call {
  std::optional<c10::Device> device;
  bool host_tensor = false;
  std::vector<std::pair<at::Generator, at::Generator>> generators;

  at::Tensor convert(const at::Tensor& t) {
    if (!t.defined()) return t;
    if (on_npu(t)) {
      TORCH_CHECK(!device || *device == t.device(), "tensors are on ", *device, " and on ", t.device());
      device = t.device();
    } else {
      host_tensor |= t.dim() > 0;
    }
    return as_host(t);
  }

  c10::IValue convert(const c10::IValue& value) {
    if (value.isTensor()) return convert(value.toTensor());
    if (value.isTensorList()) {
      c10::List<at::Tensor> out;
      for (const at::Tensor& t : value.toTensorList()) out.push_back(convert(t));
      return out;
    }
    if (value.isOptionalTensorList()) {
      c10::List<std::optional<at::Tensor>> out;
      for (const std::optional<at::Tensor>& t : value.toOptionalTensorList()) {
        out.push_back(t ? std::optional<at::Tensor>(convert(*t)) : std::nullopt);
      }
      return out;
    }
    if (value.isDevice() && value.toDevice().type() == kNpu) {
      if (!device) device = value.toDevice().has_index() ? value.toDevice() : Guard().getDevice();
      return c10::Device(c10::kCPU);
    }
    if (value.isGenerator() && value.toGenerator().device().type() == kNpu) {
      auto host = at::detail::createCPUGenerator();
      host.set_state(value.toGenerator().get_state());
      generators.emplace_back(value.toGenerator(), host);
      return host;
    }
    return value;
  }

  c10::IValue result(const c10::IValue& value) const {
    if (value.isTensor()) return as_npu(value.toTensor(), *device);
    if (!value.isTensorList()) return value;
    c10::List<at::Tensor> out;
    for (const at::Tensor& t : value.toTensorList()) out.push_back(as_npu(t, *device));
    return out;
  }
};

bool is_written(const c10::Argument& argument) { return argument.alias_info() && argument.alias_info()->isWrite(); }

void adopt(const c10::IValue& original, const c10::IValue& view) {
  if (original.isTensor()) {
    if (on_npu(original.toTensor())) adopt(original.toTensor(), view.toTensor());
  } else if (original.isTensorList()) {
    auto originals = original.toTensorVector(), views = view.toTensorVector();
    for (size_t i = 0; i < originals.size(); ++i) {
      if (on_npu(originals[i])) adopt(originals[i], views[i]);
    }
  }
}

void by_cpu(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  at::AutoDispatchBelowAutograd below_autograd;
  const auto& schema = op.schema();
  const auto& parameters = schema.arguments();
  const auto passed = torch::jit::last(*stack, parameters.size());
  const std::vector<c10::IValue> originals(passed.begin(), passed.end());
  Call call;
  std::vector<c10::IValue> views;
  for (const auto& value : originals) views.push_back(call.convert(value));
  TORCH_CHECK(call.device, schema.name(), " got neither an NPU tensor nor an NPU device");
  TORCH_CHECK(
      !call.host_tensor || takes_host_tensors(schema.name()),
      schema.name(), ": expected all tensors to be on the same device, but found ", *call.device, " and cpu");
  torch::jit::drop(*stack, parameters.size());
  for (const auto& view : views) stack->push_back(view);
  op.redispatchBoxed(c10::DispatchKeySet(c10::DispatchKey::CPU), stack);

  auto returned = torch::jit::pop(*stack, schema.returns().size());
  for (size_t i = 0; i < parameters.size(); ++i) {
    if (is_written(parameters[i])) adopt(originals[i], views[i]);
  }
  for (auto& [npu, host] : call.generators) npu.set_state(host.get_state());
  for (size_t r = 0; r < returned.size(); ++r) {
    const auto& declared = schema.returns()[r];
    auto value = call.result(returned[r]);
    for (size_t i = 0; is_written(declared) && i < parameters.size(); ++i) {
      if (parameters[i].alias_info() && *parameters[i].alias_info() == *declared.alias_info()) value = originals[i];
    }
    stack->push_back(std::move(value));
  }
}

// -------------------------------------------------- what cannot be left to the CPU: allocation, views, copies, layout

void refuse_format(std::optional<c10::MemoryFormat> format) {
  TORCH_CHECK(
      !format || *format == c10::MemoryFormat::Contiguous || *format == c10::MemoryFormat::Preserve,
      "Only contiguous_format or preserve_format is supported.");
}

at::Tensor empty(
    at::IntArrayRef size, std::optional<at::ScalarType> dtype, std::optional<at::Layout>,
    std::optional<at::Device> device, std::optional<bool>, std::optional<c10::MemoryFormat> format) {
  refuse_format(format);
  const c10::OptionalDeviceGuard guard(device);
  return at::detail::empty_generic(
      size, &allocator, c10::DispatchKeySet(c10::DispatchKey::PrivateUse1), c10::dtype_or_default(dtype), {});
}

at::Tensor empty_strided(
    at::IntArrayRef size, at::IntArrayRef stride, std::optional<at::ScalarType> dtype, std::optional<at::Layout>,
    std::optional<at::Device> device, std::optional<bool>) {
  const c10::OptionalDeviceGuard guard(device);
  return at::detail::empty_strided_generic(
      size, stride, &allocator, c10::DispatchKeySet(c10::DispatchKey::PrivateUse1), c10::dtype_or_default(dtype));
}

// float64 quietly becomes float32, as on the real device.
at::Tensor to_copy(
    const at::Tensor& self, std::optional<at::ScalarType> dtype, std::optional<at::Layout>,
    std::optional<at::Device> device, std::optional<bool> pin, bool non_blocking,
    std::optional<c10::MemoryFormat> format) {
  refuse_format(format);
  if (dtype == at::kDouble && !device) {
    TORCH_WARN_ONCE("NPUs have no float64: the result is float32");
    dtype = at::kFloat;
  }
  auto options = self.options().merge_in(at::TensorOptions().dtype(dtype).device(device).pinned_memory(pin));
  const bool keep = format == c10::MemoryFormat::Preserve && self.is_non_overlapping_and_dense();
  auto out = keep ? at::empty_strided(self.sizes(), self.strides(), options) : at::empty(self.sizes(), options);
  return out.copy_(self, non_blocking);
}

at::Tensor contiguous(const at::Tensor& self, c10::MemoryFormat format) {
  TORCH_CHECK(
      format == c10::MemoryFormat::Contiguous || format == c10::MemoryFormat::Preserve,
      "NPU contiguous operator only supported contiguous memory format.");
  return self.is_contiguous() ? self : self.clone(c10::MemoryFormat::Contiguous);
}

at::Tensor copy_from(const at::Tensor& self, const at::Tensor& target, bool) {
  at::AutoDispatchBelowAutograd below_autograd;
  as_host(target).copy_(as_host(self));
  return target;
}

at::Tensor copy_from_and_resize(const at::Tensor& self, const at::Tensor& target) {
  return copy_from(self, target.resize_(self.sizes()), false);
}

at::Tensor view_of(const at::Tensor& self, const at::Tensor& host) {
  auto out = at::detail::make_tensor<at::TensorImpl>(
      c10::TensorImpl::VIEW, c10::Storage(self.storage()), self.key_set(), self.dtype());
  out.unsafeGetTensorImpl()->set_storage_offset(host.storage_offset());
  out.unsafeGetTensorImpl()->set_sizes_and_strides(host.sizes(), host.strides());
  return out;
}

at::Tensor as_strided(
    const at::Tensor& self, at::IntArrayRef size, at::IntArrayRef stride, std::optional<int64_t> offset) {
  at::AutoDispatchBelowAutograd below_autograd;
  return view_of(self, as_host(self).as_strided(size, stride, offset));
}

at::Tensor view(const at::Tensor& self, at::IntArrayRef size) {
  at::AutoDispatchBelowAutograd below_autograd;
  return view_of(self, as_host(self).view(size));
}

at::Tensor reshape_alias(const at::Tensor& self, at::IntArrayRef size, at::IntArrayRef stride) {
  return ::as_strided(self, size, stride, std::optional<int64_t>(self.storage_offset()));
}

at::Tensor unfold(const at::Tensor& self, int64_t dimension, int64_t size, int64_t step) {
  at::AutoDispatchBelowAutograd below_autograd;
  return view_of(self, as_host(self).unfold(dimension, size, step));
}

const at::Tensor& resize(const at::Tensor& self, at::IntArrayRef size, std::optional<c10::MemoryFormat> format) {
  refuse_format(format);
  auto* impl = self.unsafeGetTensorImpl();
  const size_t bytes = (self.storage_offset() + c10::multiply_integers(size)) * self.itemsize();
  if (bytes > self.storage().nbytes()) Hooks().resizePrivateUse1Bytes(self.storage(), bytes);
  impl->set_sizes_contiguous(size);
  return self;
}

at::Tensor& set_storage_offset(
    at::Tensor& self, at::Storage source, int64_t offset, at::IntArrayRef size, at::IntArrayRef stride) {
  auto* impl = self.unsafeGetTensorImpl();
  impl->set_storage_keep_dtype(std::move(source));
  impl->set_storage_offset(offset);
  if (size.size() == stride.size()) {
    impl->set_sizes_and_strides(size, stride);
  } else {
    impl->set_sizes_contiguous(size);
  }
  return self;
}

at::Tensor& set_storage(at::Tensor& self, at::Storage source) {
  const auto length = static_cast<int64_t>(source.nbytes() / self.itemsize());
  return set_storage_offset(self, std::move(source), 0, {length}, {});
}

at::Tensor& set_tensor(at::Tensor& self, const at::Tensor& source) {
  return set_storage_offset(self, source.storage(), source.storage_offset(), source.sizes(), source.strides());
}

void record_stream(at::Tensor&, c10::Stream) {}

at::Tensor convolution(
    const at::Tensor& input, const at::Tensor& weight, const std::optional<at::Tensor>& bias, at::IntArrayRef stride,
    at::IntArrayRef padding, at::IntArrayRef dilation, bool transposed, at::IntArrayRef output_padding,
    int64_t groups) {
  at::AutoDispatchBelowAutograd below_autograd;
  auto host_bias = bias ? std::optional<at::Tensor>(as_host(*bias)) : std::nullopt;
  return as_npu(
      at::convolution(
          as_host(input), as_host(weight), host_bias, stride, padding, dilation, transposed, output_padding, groups),
      input.device());
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> convolution_backward(
    const at::Tensor& gradient, const at::Tensor& input, const at::Tensor& weight, at::IntArrayRef stride,
    at::IntArrayRef padding, at::IntArrayRef dilation, bool transposed, at::IntArrayRef output_padding,
    int64_t groups, std::array<bool, 3> mask) {
  at::AutoDispatchBelowAutograd below_autograd;
  const std::vector<int64_t> bias_sizes{transposed ? weight.size(1) * groups : weight.size(0)};
  auto [x, w, b] = at::convolution_backward(
      as_host(gradient), as_host(input), as_host(weight), bias_sizes, stride, padding, dilation, transposed,
      output_padding, groups, mask);
  const auto device = input.device();
  return {as_npu(x, device), as_npu(w, device), as_npu(b, device)};
}

TORCH_LIBRARY_IMPL(_, PrivateUse1, m) { m.fallback(torch::CppFunction::makeFromBoxedFunction<&by_cpu>()); }

TORCH_LIBRARY_IMPL(aten, PrivateUse1, m) {
  m.impl("empty.memory_format", &empty);
  m.impl("empty_strided", &empty_strided);
  m.impl("_to_copy", &to_copy);
  m.impl("contiguous", &contiguous);
  m.impl("_copy_from", &copy_from);
  m.impl("_copy_from_and_resize", &copy_from_and_resize);
  m.impl("as_strided", &as_strided);
  m.impl("view", &view);
  m.impl("_reshape_alias", &reshape_alias);
  m.impl("unfold", &unfold);
  m.impl("resize_", &resize);
  m.impl("set_.source_Storage_storage_offset", &set_storage_offset);
  m.impl("set_.source_Storage", &set_storage);
  m.impl("set_.source_Tensor", &set_tensor);
  m.impl("record_stream", &record_stream);
  m.impl("convolution_overrideable", &convolution);
  m.impl("convolution_backward_overrideable", &convolution_backward);
}

// `contiguous` is composed of differentiable operations, so the refusal can stand above autograd.
TORCH_LIBRARY_IMPL(aten, AutogradPrivateUse1, m) { m.impl("contiguous", &contiguous); }

// --------------------------------------------------------------------------------------------- mixed precision

TORCH_LIBRARY_IMPL(_, AutocastPrivateUse1, m) { m.fallback(torch::CppFunction::makeFallthrough()); }

#define LOWER(...) KERNEL_PRIVATEUSEONE(__VA_ARGS__, lower_precision_fp)
#define FULL(...) KERNEL_PRIVATEUSEONE(__VA_ARGS__, fp32)
#define FULL_DTYPE(...) KERNEL_PRIVATEUSEONE(__VA_ARGS__, fp32_set_opt_dtype)
#define WIDEST(...) KERNEL_PRIVATEUSEONE(__VA_ARGS__, promote)
using namespace at::autocast;
TORCH_LIBRARY_IMPL(aten, AutocastPrivateUse1, m) {
  AT_FORALL_LOWER_PRECISION_FP(LOWER)
  AT_FORALL_FP32(FULL)
  AT_FORALL_FP32_SET_OPT_DTYPE(FULL_DTYPE)
  AT_FORALL_PROMOTE(WIDEST)
}

// ------------------------------------------------------------------------------------------- for the Python part

// `self` becomes a window into `buffer`, from element `offset` on; both keep their shapes.
void move_into(at::Tensor& self, const at::Tensor& buffer, int64_t offset) {
  auto* owner = new c10::Storage(buffer.storage());
  auto* data = static_cast<char*>(owner->mutable_data()) + offset * buffer.itemsize();
  auto* impl = self.storage().unsafeGetStorageImpl();
  impl->set_data_ptr_noswap(c10::DataPtr(
      data, owner, [](void* p) { delete static_cast<c10::Storage*>(p); }, self.device()));
}

at::Tensor host_view(const at::Tensor& self) { return as_host(self); }

}  // namespace

TORCH_LIBRARY(npu_simulator, m) {
  m.def("move_into(Tensor(a!) self, Tensor buffer, int offset) -> ()");
  m.def("host_view(Tensor self) -> Tensor");
}
TORCH_LIBRARY_IMPL(npu_simulator, PrivateUse1, m) {
  m.impl("move_into", &move_into);
  m.impl("host_view", &host_view);
}
