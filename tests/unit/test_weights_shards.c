// Weights in several files: what the index may say, and what it may not.
#include "tests/unit/weights_support.h"

static const char *const shard_names[] = {"a.safetensors", "b.safetensors", "c.safetensors"};

static int shard_of(int i) {
    return i * 7 % 3;
}

static void save_index(const char *text) {
    char index[TSR_PATH_MAX];
    expect_ok(tsr_path_join(index, dir, "model.safetensors.index.json"));
    write_text(index, text);
}

// Three shards, and an index of all tensors but `skip`; `more` is put into the map.
static void save_shards(const char *skip, const char *more) {
    struct tsr_buf b = {0};
    expect_ok(tsr_buf_printf(&b, "{\"metadata\":{\"total_size\":1},\"weight_map\":{%s", more));
    const char *comma = *more ? "," : "";
    for (int s = 0; s < 3; s++) {
        struct tsr_st_entry part[MAX_ENTRIES];
        int n = 0;
        for (int i = 0; i < n_entries; i++) {
            if (shard_of(i) != s)
                continue;
            part[n++] = entries[i];
            if (!skip || strcmp(skip, entries[i].name) != 0) {
                expect_ok(
                    tsr_buf_printf(&b, "%s\"%s\":\"%s\"", comma, entries[i].name, shard_names[s]));
                comma = ",";
            }
        }
        expect_ok(tsr_path_join(path, dir, shard_names[s]));
        write_tensors(path, part, n, value_by_name);
    }
    expect_ok(tsr_buf_printf(&b, "}}"));
    save_index(b.data);
    tsr_buf_free(&b);
}

static void test_shards(void **state) {
    (void)state;
    save_shards(NULL, "");
    check_all(0);
}

static void test_shards_and_index_disagree(void **state) {
    (void)state;
    save_shards("lm_head.weight", "");
    expect_refused(
        "\"lm_head.weight\": expected the index to place it in this file, found nothing");
    save_shards(NULL, "\"ghost\":\"a.safetensors\"");
    expect_refused("expected tensor \"ghost\" in a.safetensors");
    save_shards(NULL, "\"ghost\":\"d.safetensors\"");
    expect_refused("d.safetensors: cannot open");
    const char *other = shard_names[(shard_of((int)(entry("lm_head.weight") - entries)) + 1) % 3];
    char more[64];
    snprintf(more, sizeof more, "\"lm_head.weight\":\"%s\"", other);
    save_shards("lm_head.weight", more);
    expect_refused("expected tensor \"lm_head.weight\" in");
}

// An index that points out of its folder is refused by its words, before anything is opened.
static void test_index_escapes(void **state) {
    (void)state;
    static const char *const outside[] = {"\"../a.safetensors\"",
                                          "\"/etc/passwd\"",
                                          "\"sub/a.safetensors\"",
                                          "\"..\"",
                                          "\".\"",
                                          "\"\"",
                                          "1",
                                          "null",
                                          "\"a\\nb\""};
    for (size_t i = 0; i < sizeof outside / sizeof *outside; i++) {
        char text[256];
        snprintf(text, sizeof text, "{\"weight_map\":{\"x\":%s}}", outside[i]);
        save_index(text);
        expect_refused("plain file names");
    }
    save_index("{\"weight_map\":{\"x\\ny\":\"a.safetensors\"}}");
    expect_refused("plain file names");
}

static void test_wrong_index(void **state) {
    (void)state;
    static const char *const wrong[][2] = {
        {"", "not valid JSON"},
        {"{", "not valid JSON"},
        {"[]", "weight_map"},
        {"3", "not valid JSON"},
        {"{}", "weight_map"},
        {"{\"weight_map\":[]}", "weight_map"},
        {"{\"weight_map\":{}}", "is missing"},
        {"{\"weight_map\":{\"x\":\"a\",\"x\":\"a\"}}", "not valid JSON"},
    };
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        save_index(wrong[i][0]);
        expect_refused(wrong[i][1]);
    }
}

// One file wins over an index beside it, as in transformers.
static void test_single_file_wins(void **state) {
    (void)state;
    save();
    save_index("{");
    check_all(0);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        WITH(test_shards, start_llama),
        WITH(test_shards, start_gpt2),
        WITH(test_shards_and_index_disagree, start_llama),
        WITH(test_index_escapes, start_llama),
        WITH(test_wrong_index, start_llama),
        WITH(test_single_file_wins, start_llama),
    };
    return cmocka_run_group_tests_name("weights_shards", tests, NULL, NULL);
}
