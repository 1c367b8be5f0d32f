// Greedy decoding through llama.cpp's public C interface, on one device alone.
//
//   greedy convert FROM.gguf TO.gguf        the same model in f16
//   greedy MODEL.gguf DEVICE COUNT PROMPT   COUNT tokens, an id a line with the lead over the second; the text at the end
//
// DEVICE is a name of ggml's: CPU or CANN0.

#include "ggml-backend.h"
#include "llama.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

static int fail(const char * what) {
    fprintf(stderr, "error: %s\n", what);
    return 1;
}

static int convert(const char * from, const char * to) {
    llama_model_quantize_params params = llama_model_quantize_default_params();
    params.ftype            = LLAMA_FTYPE_MOSTLY_F16;
    params.allow_requantize = true;
    params.nthread          = 2;
    return llama_model_quantize(from, to, &params) == 0 ? 0 : fail("the model could not be converted");
}

int main(int argc, char ** argv) {
    ggml_backend_load_all();
    llama_backend_init();
    if (argc == 4 && strcmp(argv[1], "convert") == 0) {
        return convert(argv[2], argv[3]);
    }
    if (argc != 5) {
        return fail("greedy MODEL.gguf DEVICE COUNT PROMPT");
    }
    const std::string device = argv[2], prompt = argv[4];
    const int         count  = atoi(argv[3]);

    ggml_backend_dev_t found = ggml_backend_dev_by_name(device.c_str());
    if (!found) {
        return fail("there is no such device");
    }
    const bool         cpu       = ggml_backend_dev_type(found) == GGML_BACKEND_DEVICE_TYPE_CPU;
    ggml_backend_dev_t devices[] = { cpu ? nullptr : found, nullptr };
    llama_model_params model_params = llama_model_default_params();
    model_params.devices      = devices;
    model_params.n_gpu_layers = cpu ? 0 : 99;
    llama_model * model = llama_model_load_from_file(argv[1], model_params);
    if (!model) {
        return fail("the model could not be loaded");
    }
    const llama_vocab * vocab = llama_model_get_vocab(model);
    const int           words = llama_vocab_n_tokens(vocab);

    std::vector<llama_token> tokens(prompt.size() + 8);
    const int length =
        llama_tokenize(vocab, prompt.data(), prompt.size(), tokens.data(), tokens.size(), true, true);
    if (length <= 0) {
        return fail("the prompt has no tokens");
    }
    tokens.resize(length);

    llama_context_params context_params = llama_context_default_params();
    context_params.n_ctx           = length + count + 1;
    context_params.n_batch         = length;
    context_params.n_threads       = 2;
    context_params.n_threads_batch = 2;
    llama_context * context = llama_init_from_model(model, context_params);
    if (!context) {
        return fail("there is no memory for the context");
    }

    std::string text;
    for (int step = 0; step < count; step++) {
        if (llama_decode(context, llama_batch_get_one(tokens.data(), tokens.size())) != 0) {
            return fail("a step failed");
        }
        const float * logits = llama_get_logits_ith(context, -1);
        int           best   = 0;
        for (int word = 1; word < words; word++) {
            best = logits[word] > logits[best] ? word : best;
        }
        float second = -1e30f;
        for (int word = 0; word < words; word++) {
            second = word != best && logits[word] > second ? logits[word] : second;
        }
        printf("token %d lead %.3f\n", best, logits[best] - second);
        char      piece[256];
        const int bytes = llama_token_to_piece(vocab, best, piece, sizeof piece, 0, true);
        text.append(piece, bytes > 0 ? bytes : 0);
        tokens.assign(1, best);
    }
    printf("text %s\n", text.c_str());
    llama_free(context);
    llama_model_free(model);
    llama_backend_free();
    return 0;
}
