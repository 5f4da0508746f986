/* layer_rows.cu - what the layer needs of each row between its gate and its combine: which rows take part, the ids and
 * weights of a separate shared MLP, TOPK_SIGMOID's weights split into input scales and combine weights, x in y's dtype.
 *
 * The same values as the host loops of api_layer.c; one warp a row, one launch. */
#include "kernels/cuda/numbers.cuh"

namespace
{

__global__ void __launch_bounds__(256) layer_rows_kernel(const __grid_constant__ mf_cuda_layer_rows p)
{
    const int lane = threadIdx.x & 31;
    const int64_t limit = num_valid_rows(p.num_valid, p.num_tokens, true), warps = (int64_t)gridDim.x * (blockDim.x / 32);
    for (int64_t t = ((int64_t)blockIdx.x * blockDim.x + threadIdx.x) / 32; t < p.num_tokens; t += warps) {
        bool valid = t < limit && (!p.row_valid_in || p.row_valid_in[t] != 0);
        int64_t token = 0;
        if (valid && p.hash) {
            token = p.token_i64 ? load_at<int64_t>(p.token_ids, t, true) : load_at<int32_t>(p.token_ids, t, true);
            valid = token >= 0 && token < p.hash_rows;
        }
        if (lane == 0) {
            p.row_valid[t] = valid;
        }
        float weight = 0.0f;
        if (valid && p.shared_weights) {
            const float logit = load_at<float>(p.shared_gate, t, true);
            if (!is_nan(logit)) {
                weight = canon_zero(gate_sigmoid(canon_input(logit)));
            } else { /* the gate has counted rows whose logits hold a NaN */
                bool nan = false;
                const int64_t n = p.hash ? p.top_k : p.row_width;
                for (int64_t k = lane; k < n; k += 32) {
                    const int64_t i = p.hash ? load_at<int32_t>(p.hash_table, token * p.hash_stride + k, true) : k;
                    nan |= i >= 0 && (!p.hash || i < p.num_experts) &&
                           is_nan(load_float(p.logits, p.logits_dtype, t * p.logits_stride + i, true));
                }
                if (!__any_sync(MF_FULL_WARP, nan) && lane == 0 && p.bad_rows) {
                    atomicAdd((int32_t *)p.bad_rows, 1);
                }
            }
        }
        for (int64_t j = lane; p.shared_ids && j < p.num_shared; j += 32) {
            p.shared_ids[t * p.num_shared + j] = valid ? (int32_t)j : -1;
            if (p.shared_weights) {
                p.shared_weights[t * p.num_shared + j] = weight;
            }
        }
        for (int64_t c = lane; p.input_scale && c < p.num_columns; c += 32) {
            const float w = load_at<float>(p.weights, t * p.weights_stride + c, true);
            const bool routed = c < p.num_routed;
            p.input_scale[t * p.num_columns + c] = routed ? w : 1.0f;
            p.combine_weights[t * p.num_columns + c] = routed ? 1.0f : w;
        }
        for (int64_t h = lane; p.hidden && h < p.hidden_size; h += 32) {
            p.hidden[t * p.hidden_size + h] = load_float(p.x, p.x_dtype, t * p.x_stride + h, true);
        }
    }
}

} // namespace

int mf_cuda_launch_layer_rows(const mf_cuda_layer_rows *call, void *stream)
{
    const int64_t blocks = (call->num_tokens + 7) / 8;
    layer_rows_kernel<<<(unsigned)(blocks < 4096 ? blocks : 4096), 256, 0, (cudaStream_t)stream>>>(*call);
    return (int)cudaGetLastError();
}
