// `key=value` arguments: the value is YAML, the key a field, a section, or a key of model.config.
#include "core/run_private.h"

#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "core/error.h"

static const char config_prefix[] = "model.config.";

// Sets `key` ("rope_scaling.factor") of the JSON object in *text to a value in JSON.
static bool merge_json(char **text, const char *key, const char *value) {
    json_t *root = json_loads(*text, 0, NULL), *object = root;
    json_t *v = json_loads(value, JSON_DECODE_ANY, NULL);
    const char *dot;
    while (json_is_object(object) && (dot = strchr(key, '.'))) {
        char part[200];
        snprintf(part, sizeof part, "%.*s", (int)(dot - key), key);
        object = json_object_get(object, part);
        key = dot + 1;
    }
    char *merged = NULL;
    if (v && json_is_object(object) && *key && json_object_set(object, key, v) == 0)
        merged = json_dumps(root, 0);
    json_decref(v);
    json_decref(root);
    if (!merged)
        return false;
    free(*text);
    *text = merged;
    return true;
}

static void override_config(struct tsr_reader *rd, const char *key, const yaml_node_t *value) {
    struct tsr_mark at = {rd->argument, 1, 1};
    struct tsr_buf b = {0};
    char **config = &rd->r->model.config;
    if (!*config)
        tsr_mistake(rd, at, "there is no model.config to change a key of");
    else if (tsr_yaml_key_to_json(rd, key, value, "model.config", &b) &&
             !merge_json(config, key, b.data))
        tsr_mistake(rd, at, "model.config has no place for this key");
    tsr_buf_free(&b);
}

void tsr_reader_override(struct tsr_reader *rd, int i) {
    const char *text = rd->overrides[i], *equals = strchr(text, '=');
    size_t n_key = equals ? (size_t)(equals - text) : 0;
    struct tsr_mark at = {i + 1, 1, 1};
    char key[200];
    yaml_document_t doc;
    rd->argument = i + 1;
    if (n_key == 0) {
        tsr_mistake(rd, at, "expected KEY=VALUE, such as train.steps=50");
        rd->is_usage = true;
        return;
    }
    snprintf(key, sizeof key, "%.*s", (int)(n_key < sizeof key ? n_key : sizeof key - 1), text);
    const char *value = equals + 1 + strspn(equals + 1, " \t\n");
    if (!tsr_yaml_compose(rd, *value ? value : "null", *value ? strlen(value) : 4, &doc))
        return;
    const yaml_node_t *root = yaml_document_get_root_node(&doc);
    rd->doc = &doc;
    if (!root)
        tsr_mistake(rd, at, "expected a value after `=`, found none");
    else if (strncmp(key, config_prefix, sizeof config_prefix - 1) == 0)
        override_config(rd, key + sizeof config_prefix - 1, root);
    else
        tsr_reader_apply(rd, key, at, root);
    rd->doc = NULL;
    yaml_document_delete(&doc);
}
