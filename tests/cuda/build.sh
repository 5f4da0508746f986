#!/usr/bin/env bash
# Builds what the GPU's tests need with cc and nvcc alone, in parallel, for this machine's GPU: a machine that is lent for
# minutes has neither our libraries nor time for CMake.  build.sh OUT [-Iextra ...]; cmocka.h is found there or in the system.
set -euo pipefail
out=$1
shift
root=$(cd "$(dirname "$0")/../.." && pwd)
nvcc=${NVCC:-$(command -v nvcc || echo /usr/local/cuda/bin/nvcc)}
cuda=$(dirname "$(dirname "$(readlink -f "$nvcc")")")
jobs=${JOBS:-$(nproc)}
ccache=$(command -v ccache || true)
mkdir -p "$out/o"
c_flags="-std=c11 -O2 -g1 -fPIC -ffp-contract=off -D_GNU_SOURCE -I$root/src -I$root/include -I$root/tests -I$root/tests/conformance -isystem $cuda/include $*"
cu_flags="${CU_DEFINES:-} -O3 -std=c++17 -fmad=false -lineinfo -Xcompiler=-fPIC,-fvisibility=hidden -I$root/src -I$root/include -gencode=arch=compute_90a,code=sm_90a"
base="error sys memory threads topology huge cpu_features arena buffer"
kernels="device tensor tensor_check format api_gate api_align api_experts api_sum_reduce api_layer cuda/cuda_load
  ref/ref_device ref/gate ref/gate_unfused ref/align ref/sum_reduce ref/experts ref/dense ref/attention ref/delta_net"
support="conf staging staging_dense gate_case gate_random gate_oracle gate_events experts_case experts_batch attention_case"
programs="gate gate_api align sum_reduce invariants traps experts experts_bits experts_units layer layer_chunks dense attention attention_bits delta_net"
{
    for f in grouped grouped_few grouped_one grouped_blocks grouped_packed grouped_wide packed_few packed_few4 packed_one grouped_pairs grouped_rows experts_tile gate gate_rows router_gate experts_few grouped_prepare sum_reduce combine_norm experts_plain align layer_rows dense pick linear linear_few linear_ring linear_wgmma linear_tiles linear_router linear_fp8 linear_codes linear_codes_ring linear_codes_wgmma attention attention_mma attention_row attention_wgmma attention_mla attention_mla_wgmma mla_absorb delta_net; do
        echo "$ccache $nvcc $cu_flags -c $root/src/kernels/cuda/$f.cu -o $out/o/cu_$f.o"
    done
    for f in $base; do echo "$ccache cc $c_flags -c $root/src/base/$f.c -o $out/o/b_$f.o"; done
    for f in $kernels; do echo "$ccache cc $c_flags -c $root/src/kernels/$f.c -o $out/o/k_${f//\//_}.o"; done
    for f in plan router_plan experts_plan grouped_plan one_plan packed_one_plan tensor_maps grouped_maps attention_hopper linear_hopper cuda_device cuda_dense cuda_linear cuda_codes cuda_row cuda_elements cuda_memory cuda_marks; do echo "$ccache cc $c_flags -fvisibility=hidden -c $root/src/kernels/cuda/$f.c -o $out/o/d_$f.o"; done
    for f in $support; do echo "$ccache cc $c_flags -c $root/tests/conformance/$f.c -o $out/o/s_$f.o"; done
    for f in $programs; do echo "$ccache cc $c_flags -c $root/tests/conformance/$f.c -o $out/o/t_$f.o"; done
    echo "$ccache $nvcc $cu_flags -cudart static -o $out/sigmoid_sweep $root/tests/cuda/sigmoid_sweep.cu"
    echo "$ccache cc $c_flags -c $root/tests/cuda/capture.c -o $out/o/t_capture.o"
    echo "$ccache cc $c_flags -c $root/tests/cuda/pick.c -o $out/o/t_pick.o"
    for f in attend_once router_once combine_once; do echo "$ccache cc $c_flags -c $root/tests/cuda/$f.c -o $out/o/t_$f.o"; done
    for f in sampler picks; do echo "$ccache cc $c_flags -O3 -fno-trapping-math -c $root/src/engine/$f.c -o $out/o/e_$f.o"; done
    echo "$ccache cc $c_flags -c $root/tests/cuda/stand_ins.c -o $out/o/n_stand_ins.o"
    echo "$ccache cc $c_flags -c $root/tests/test_main.c -o $out/o/m_test_main.o"
    echo "$ccache cc $c_flags -c $root/bench/cuda_bench.c -o $out/o/x_cuda_bench.o"
} | xargs -P "$jobs" -I{} sh -c '{} || exit 255'
runtime="$cuda/lib64/libcudart_static.a"
cc -shared -o "$out/libmoefuse_cuda.so" "$out"/o/cu_*.o "$out"/o/d_*.o "$out"/o/k_tensor.o "$out"/o/b_*.o "$out/o/n_stand_ins.o" "$runtime" \
    -Wl,--exclude-libs,ALL,--no-undefined -lstdc++ -ldl -lpthread -lrt -lm
wraps=
for f in mf_moe_fused_gate mf_moe_gate_unfused mf_moe_align_block_size mf_moe_sum_reduce mf_experts_create mf_experts_destroy \
    mf_fused_experts mf_moe_layer; do wraps="$wraps -Wl,--wrap=$f"; done
libraries="$out/o/n_stand_ins.o $(ls "$out"/o/k_*.o "$out"/o/b_*.o | tr '\n' ' ') -ldl -lpthread -lm"
{
    for f in $programs; do
        echo "cc -o $out/$f $out/o/t_$f.o $out/o/m_test_main.o $(ls "$out"/o/s_*.o | tr '\n' ' ') $libraries ${CMOCKA:--lcmocka} $wraps"
    done
    echo "cc -o $out/capture $out/o/t_capture.o $out/o/m_test_main.o $libraries ${CMOCKA:--lcmocka} $runtime -lstdc++ -lrt"
    for f in attend_once router_once combine_once; do echo "cc -o $out/$f $out/o/t_$f.o $out/o/m_test_main.o $libraries ${CMOCKA:--lcmocka}"; done
    echo "cc -o $out/pick $out/o/t_pick.o $out/o/e_sampler.o $out/o/e_picks.o $out/o/m_test_main.o $libraries ${CMOCKA:--lcmocka}"
    echo "cc -o $out/cuda_bench $out/o/x_cuda_bench.o $libraries $runtime -lstdc++ -lrt"
} | xargs -P "$jobs" -I{} sh -c '{} || exit 255'
