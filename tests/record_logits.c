// Preloaded into llama-cli or llama-server: writes down what it asks libllama for, and the logits that it gets.
//
// $RECORD_LOGITS names the file. A record per output row, all numbers 32 bits in the machine's order:
//     position | vocabulary | count of tokens since the last record | position and id of each | logits
// The first record is a length and as many bytes: what the library says of its YaRN features, nothing where it is stock.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "llama.h"

#define MOST 65536

struct token {
    int32_t position; // -1: not set, as in a warm-up
    int32_t id;
    bool output;
};

// a program fills one batch at a time, so the last one that was cleared or made is the one that counts
static struct token tokens[MOST];
static int32_t count;
static int32_t pending[MOST][2];
static uint32_t n_pending;
static FILE * file;

static void * real(const char * name) {
    void * found = dlsym(RTLD_NEXT, name);
    if (!found) {
        fprintf(stderr, "no %s to record\n", name);
        abort();
    }
    return found;
}

static void start(void) {
    file = fopen(getenv("RECORD_LOGITS"), "wb");
    if (!file) {
        abort();
    }
    const char * (*features)(void) = (const char * (*)(void)) dlsym(RTLD_DEFAULT, "llama_yarn_features");
    const char * text = features ? features() : "";
    const uint32_t length = (uint32_t) strlen(text);
    fwrite(&length, 4, 1, file);
    fwrite(text, 1, length, file);
}

struct llama_batch_ext * llama_batch_ext_init(struct llama_context * ctx) {
    count = 0;
    return ((struct llama_batch_ext * (*)(struct llama_context *)) real("llama_batch_ext_init"))(ctx);
}

void llama_batch_ext_clear(struct llama_batch_ext * batch) {
    count = 0;
    ((void (*)(struct llama_batch_ext *)) real("llama_batch_ext_clear"))(batch);
}

int32_t llama_batch_ext_add_token(struct llama_batch_ext * batch, llama_seq_id seq_id, llama_token id) {
    int32_t (*add)(struct llama_batch_ext *, llama_seq_id, llama_token) =
        (int32_t (*)(struct llama_batch_ext *, llama_seq_id, llama_token)) real("llama_batch_ext_add_token");
    const int32_t index = add(batch, seq_id, id);
    if (index >= 0 && index < MOST) {
        tokens[index] = (struct token) { -1, id, false };
        count = index + 1;
    }
    return index;
}

bool llama_batch_ext_set_pos(struct llama_batch_ext * batch, int32_t index, const llama_pos * pos) {
    if (index >= 0 && index < count) {
        tokens[index].position = pos[0];
    }
    return ((bool (*)(struct llama_batch_ext *, int32_t, const llama_pos *)) real("llama_batch_ext_set_pos"))(
        batch, index, pos);
}

bool llama_batch_ext_set_output_logits(struct llama_batch_ext * batch, int32_t index, bool value) {
    if (index >= 0 && index < count) {
        tokens[index].output = value;
    }
    return ((bool (*)(struct llama_batch_ext *, int32_t, bool)) real("llama_batch_ext_set_output_logits"))(
        batch, index, value);
}

int32_t llama_process(struct llama_context * ctx, enum llama_process_type type, struct llama_batch_ext * batch) {
    int32_t (*process)(struct llama_context *, enum llama_process_type, struct llama_batch_ext *) =
        (int32_t (*)(struct llama_context *, enum llama_process_type, struct llama_batch_ext *)) real("llama_process");
    const int32_t status = process(ctx, type, batch);
    if (status) {
        return status;
    }
    if (!file) {
        start();
    }
    const uint32_t n_vocab = (uint32_t) llama_vocab_n_tokens(llama_model_get_vocab(llama_get_model(ctx)));
    for (int32_t i = 0; i < count; i++) {
        if (tokens[i].position < 0) {
            continue;
        }
        pending[n_pending][0] = tokens[i].position;
        pending[n_pending++][1] = tokens[i].id;
        if (!tokens[i].output) {
            continue;
        }
        fwrite(&tokens[i].position, 4, 1, file);
        fwrite(&n_vocab, 4, 1, file);
        fwrite(&n_pending, 4, 1, file);
        fwrite(pending, 8, n_pending, file);
        fwrite(llama_get_logits_ith(ctx, i), 4, n_vocab, file);
        fflush(file);
        n_pending = 0;
    }
    return status;
}
