// What the device can do, measured: the two limits that speeds are compared with. Free of CUDA headers. Each call takes
// memory of the current device, measures for well under half a second and gives the memory back; when there is too
// little for the full size a quarter of it must do, and when there is not even that, Error(does_not_fit) says so.
#pragma once

namespace infer::cuda {

/// GB/s at which all SMs together read device memory, far more of it than any cache holds. Best of several passes.
double read_bandwidth_gbps();
/// 1e12 operations/s of a bf16 product of 8192 x 8192 x 8192 random numbers through cuBLASLt; a multiply and an add are
/// two. Best of several runs. Throws Error(run) without cuBLASLt.
double tensor_peak_tflops();

}  // namespace infer::cuda
