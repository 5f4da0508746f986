/* openapi_schemas.c - see openapi_schemas.h. */
#include "server/openapi_schemas.h"

#include <string.h>

#include "base/json.h"
#include "base/sys.h"
#include "server/api_messages.h"
#include "server/fields.h"

json_t *mf_openapi_text(const char *text)
{
    char *copy = mf_strdup(text);
    for (char *c = copy; c && *c; c++) {
        *c = *c == '\'' ? '"' : *c;
    }
    json_t *json = NULL;
    if (copy) {
        mf_json_parse(copy, strlen(copy), "schema", NULL, &json, NULL);
    }
    mf_free(copy);
    return json;
}

/* ---- bodies ---------------------------------------------------------------------------------------------------------
 */

#define SHORT_TEXT "{'type':['string','null'],'maxLength':256}"
#define TOOL_CALLS                                                                                                     \
    "{'type':'array','minItems':1,'maxItems':128,'items':{'type':'object','required':['function'],'properties':{"      \
    "'id':" SHORT_TEXT                                                                                                 \
    ",'type':{'enum':['function',null]},'function':{'type':'object','required':['name'],'properties':{"                \
    "'name':{'type':'string'},'arguments':{'anyOf':[{'type':['object','null']},{'type':'string','contentMediaType':"   \
    "'application/json','description':'JSON text of an object'}]}}}}}}"
#define CONTENT                                                                                                        \
    "{'anyOf':[{'type':'string'},{'type':'array','items':{'type':'object','required':['type','text'],'properties':{"   \
    "'type':{'const':'text'},'text':{'type':'string'}}}}]}"
#define MESSAGE_TEXTS                                                                                                  \
    "'name':" SHORT_TEXT ",'tool_call_id':" SHORT_TEXT                                                                 \
    ",'reasoning':{'type':['string','null']},'reasoning_content':{'type':['string','null']}"

/* What the rows of type LIST and OBJECT hold; api_messages.c and api_constraint.c read them. */
static const struct {
    mf_field_id id;
    const char *members; /* merged into the row's schema */
} inner[] = {
    { MF_FIELD_ID_MESSAGES,
      "{'items':{'type':'object','anyOf':["
      "{'required':['role','content'],'properties':{'role':{'enum':['system','developer','user','tool']},'content'"
      ":" CONTENT ",'tool_calls':{'type':['array','null'],'maxItems':0}," MESSAGE_TEXTS "}},"
      "{'required':['role','content'],'properties':{'role':{'const':'assistant'},'content':" CONTENT
      ",'tool_calls':{'anyOf':[{'type':['array','null'],'maxItems':0}," TOOL_CALLS "]}," MESSAGE_TEXTS "}},"
      "{'required':['role','tool_calls'],'properties':{'role':{'const':'assistant'},'content':{'anyOf':[{'type':'null'}"
      "," CONTENT "]},'tool_calls':" TOOL_CALLS "," MESSAGE_TEXTS "}}]}}" },
    { MF_FIELD_ID_TOOLS, "{'items':{'type':'object','required':['type','function'],'properties':{'type':{'const':'"
                         "function'},'function':{'type':'object',"
                         "'required':['name'],'properties':{'name':{'type':'string','pattern':'^[A-Za-z0-9_-]{1,64}$'},"
                         "'description':{'type':['string','null']},'parameters':{'type':['object','null'],'description'"
                         ":'A JSON schema'}}}}}}" },
    { MF_FIELD_ID_LOGIT_BIAS, "{'propertyNames':{'pattern':'^(0|[1-9][0-9]{0,9})$'},'additionalProperties':{'type':'"
                              "number','minimum':-100,'maximum':100}}" },
    { MF_FIELD_ID_STREAM_OPTIONS, "{'properties':{'include_usage':{'type':['boolean','null']},'continuous_usage_stats':"
                                  "{'type':['boolean','null']}}}" },
    { MF_FIELD_ID_RESPONSE_FORMAT, "{'anyOf':[{'properties':{'type':{'enum':['text','json_object']}}},{'required':['"
                                   "json_schema'],'properties':{'type':{'const':"
                                   "'json_schema'},'json_schema':{'type':'object','required':['schema'],'properties':{'"
                                   "name':{'type':['string','null']},'schema':{'type':"
                                   "['object','boolean']}}}}}],'required':['type']}" },
    { MF_FIELD_ID_STRUCTURED_OUTPUTS, "{'properties':{'json':{'type':['object','string','null']},'json_object':{'type':"
                                      "['boolean','null']},'regex':{'type':['string','null'],"
                                      "'minLength':1,'maxLength':65536},'choice':{'type':['array','null'],'minItems':1,"
                                      "'items':{'type':'string','minLength':1}},"
                                      "'grammar':{'type':['string','null'],'minLength':1,'maxLength':65536}}}" },
    { MF_FIELD_ID_TOOL_CHOICE,
      "{'anyOf':[{'enum':['none','auto','required',null]},{'type':'object','required':['type','function'],'properties':"
      "{'type':{'const':"
      "'function'},'function':{'type':'object','required':['name'],'properties':{'name':{'type':'string'}}}}}]}" },
    { MF_FIELD_ID_CHAT_TEMPLATE_KWARGS, "{'propertyNames':{'not':{'enum':['messages','tools','documents','tokenize','"
                                        "add_generation_prompt','continue_final_message',"
                                        "'chat_template','conversation','return_dict']}}}" },
};

/* Fields that are only good beside others. */
static const struct {
    unsigned where;
    const char *members; /* of the body's schema */
} together[] = {
    { MF_IN_COMPLETION,
      "{'dependentSchemas':{'stream_options':{'anyOf':[{'properties':{'stream_options':{'type':'null'}}},"
      "{'required':['stream'],'properties':{'stream':{'const':true}}}]}}}" },
    { MF_IN_CHAT, "{'dependentSchemas':{'stream_options':{'anyOf':[{'properties':{'stream_options':{'type':'null'}}},"
                  "{'required':['stream'],'properties':{'stream':{'const':true}}}]},"
                  "'top_logprobs':{'anyOf':[{'properties':{'top_logprobs':{'enum':[0,null]}}},"
                  "{'required':['logprobs'],'properties':{'logprobs':{'const':true}}}]},"
                  "'continue_final_message':{'anyOf':[{'properties':{'continue_final_message':{'enum':[false,null]}}},"
                  "{'required':['add_generation_prompt'],'properties':{'add_generation_prompt':{'const':false}}}]}}}" },
    { MF_IN_TOKENIZE, "{'oneOf':[{'required':['prompt'],'properties':{'prompt':{'type':'string'}}},"
                      "{'required':['messages'],'properties':{'messages':{'type':'array'}}}]}" },
};

static json_t *id_schema(const mf_openapi_options *options)
{
    json_t *schema = json_pack("{s:s, s:i}", "type", "integer", "minimum", 0);
    if (schema && options->vocab_size > 0 &&
        json_object_set_new(schema, "maximum", json_integer(options->vocab_size - 1)) != 0) {
        json_decref(schema);
        return NULL;
    }
    return schema;
}

static json_t *ids_schema(const mf_openapi_options *options, int64_t min, int64_t max)
{
    return json_pack("{s:s, s:o, s:I, s:I}", "type", "array", "items", id_schema(options), "minItems", (json_int_t)min,
                     "maxItems", (json_int_t)max);
}

static json_t *text_schema(int64_t min, int64_t max)
{
    return json_pack("{s:s, s:I, s:I}", "type", "string", "minLength", (json_int_t)min, "maxLength", (json_int_t)max);
}

static json_t *texts_schema(const mf_field *f)
{
    return json_pack("{s:s, s:o, s:I, s:I}", "type", "array", "items", text_schema(1, MF_FIELD_MAX_STRING), "minItems",
                     (json_int_t)f->min, "maxItems", (json_int_t)f->max);
}

static json_t *number_schema(const mf_field *f)
{
    bool integer = f->type == MF_FIELD_INT;
    json_t *schema = json_pack("{s:s}", "type", integer ? "integer" : "number");
    if (!schema) {
        return NULL;
    }
    /* The ends of int64 are where JSON's own integers end here. */
    bool bounded = f->max < 9e18;
    json_t *min = !bounded ? json_integer(INT64_MIN) : integer ? json_integer((json_int_t)f->min) : json_real(f->min);
    bool ok = json_object_set_new(schema, f->min_excluded ? "exclusiveMinimum" : "minimum", min) == 0;
    json_t *max = !bounded ? json_integer(INT64_MAX) : integer ? json_integer((json_int_t)f->max) : json_real(f->max);
    ok = json_object_set_new(schema, "maximum", max) == 0 && ok;
    if (!ok) {
        json_decref(schema);
        return NULL;
    }
    return schema;
}

static json_t *prompt_schema(const mf_field *f, const mf_openapi_options *options)
{
    return json_pack("{s:[o, {s:s, s:o, s:I, s:I}, o, {s:s, s:o, s:I, s:I}]}", "anyOf", text_schema(1, 8 << 20), "type",
                     "array", "items", text_schema(1, 8 << 20), "minItems", (json_int_t)f->min, "maxItems",
                     (json_int_t)f->max, ids_schema(options, 1, MF_BODY_MAX_VALUES), "type", "array", "items",
                     ids_schema(options, 1, MF_BODY_MAX_VALUES), "minItems", (json_int_t)f->min, "maxItems",
                     (json_int_t)f->max);
}

static json_t *type_schema(const mf_field *f, const mf_openapi_options *options)
{
    json_int_t min = (json_int_t)f->min, max = (json_int_t)(f->max < 9e18 ? f->max : 0);
    switch (f->type) {
    case MF_FIELD_BOOL:
        return json_pack("{s:s}", "type", "boolean");
    case MF_FIELD_INT:
    case MF_FIELD_NUMBER:
        return number_schema(f);
    case MF_FIELD_STRING:
        return text_schema(min, max);
    case MF_FIELD_STRINGS:
        return texts_schema(f);
    case MF_FIELD_STRING_OR_STRINGS:
        return json_pack("{s:[o, o]}", "anyOf", text_schema(1, MF_FIELD_MAX_STRING), texts_schema(f));
    case MF_FIELD_IDS:
        return ids_schema(options, min, max);
    case MF_FIELD_LIST:
        return json_pack("{s:s, s:I, s:I}", "type", "array", "minItems", min, "maxItems", max);
    case MF_FIELD_OBJECT:
        return json_pack("{s:s, s:I, s:I}", "type", "object", "minProperties", min, "maxProperties", max);
    case MF_FIELD_PROMPT:
        return prompt_schema(f, options);
    default:
        return json_object();
    }
}

static bool merge_text(json_t *schema, const char *members)
{
    json_t *more = mf_openapi_text(members);
    bool ok = more && json_object_update(schema, more) == 0;
    json_decref(more);
    return ok;
}

static bool limit_to_model(json_t *schema, mf_field_id id, const mf_openapi_options *options)
{
    if (id == MF_FIELD_ID_TRUNCATE_PROMPT_TOKENS) {
        bool ok = json_object_set_new(schema, "not", json_pack("{s:i}", "const", 0)) == 0;
        return ok && (options->max_model_len <= 0 ||
                      json_object_set_new(schema, "maximum", json_integer(options->max_model_len)) == 0);
    }
    if (id != MF_FIELD_ID_MODEL || options->num_names == 0) {
        return true;
    }
    json_t *names = json_array();
    for (int32_t i = 0; i < options->num_names; i++) {
        if (json_array_append_new(names, json_string(options->names[i])) != 0) {
            json_decref(names);
            return false;
        }
    }
    return json_object_set_new(schema, "enum", names) == 0;
}

/* The row as a property: null is absence, so it is allowed wherever the field is not required. */
static json_t *property(mf_field_id id, bool required, const mf_openapi_options *options)
{
    const mf_field *f = &mf_fields[id];
    json_t *schema = type_schema(f, options);
    bool ok = schema != NULL;
    for (size_t i = 0; ok && i < sizeof inner / sizeof *inner; i++) {
        ok = inner[i].id != id || merge_text(schema, inner[i].members);
    }
    ok = ok && limit_to_model(schema, id, options);
    if (ok && !required && json_object_size(schema) > 0) {
        schema = json_pack("{s:[o, {s:s}]}", "anyOf", schema, "type", "null");
        ok = schema != NULL;
    }
    if (ok && f->about) {
        ok = json_object_set_new(schema, "description", json_string(f->about)) == 0;
    }
    if (ok && strcmp(f->default_json, "null") != 0) {
        ok = json_object_set_new(schema, "default", mf_openapi_text(f->default_json)) == 0;
    }
    if (!ok) {
        json_decref(schema);
        return NULL;
    }
    return schema;
}

json_t *mf_openapi_body(unsigned where, const mf_openapi_options *options)
{
    json_t *properties = json_object(), *required = json_array();
    json_t *schema = json_pack("{s:s, s:O, s:O}", "type", "object", "properties", properties, "required", required);
    bool ok = schema != NULL;
    for (int i = 0; ok && i < MF_NUM_FIELDS; i++) {
        const mf_field *f = &mf_fields[i];
        if (!(f->where & where) || f->type == MF_FIELD_NEVER) {
            continue;
        }
        bool needed = f->required && where != MF_IN_TOKENIZE;
        ok = json_object_set_new(properties, f->name, property(i, needed, options)) == 0 &&
             (!needed || json_array_append_new(required, json_string(f->name)) == 0);
    }
    for (size_t i = 0; ok && i < sizeof together / sizeof *together; i++) {
        ok = together[i].where != where || merge_text(schema, together[i].members);
    }
    json_decref(properties);
    json_decref(required);
    if (!ok) {
        json_decref(schema);
        return NULL;
    }
    return schema;
}

/* ---- answers --------------------------------------------------------------------------------------------------------
 */

#define REF(name) "{'$ref':'#/components/schemas/" name "'}"
#define OR_NULL(schema) "{'anyOf':[" schema ",{'type':'null'}]}"
#define TEXT_OR_NULL "{'type':['string','null']}"
#define COUNT "{'type':'integer','minimum':0}"
#define FINISH                                                                                                         \
    "'finish_reason':{'enum':['stop','length','tool_calls','abort','error']},'stop_reason':{'type':['string','"        \
    "integer','null']}"
#define CHAT_TOKEN                                                                                                     \
    "'token':{'type':'string'},'logprob':{'type':'number'},'bytes':{'type':['array','null'],'items':{'type':'integer'" \
    ",'minimum':0,'maximum':255}}"

static const char *const answers[][2] = {
    { "Error", "{'type':'object','required':['error'],'properties':{'error':{'type':'object','required':['message','"
               "type','param','code'],"
               "'properties':{'message':{'type':'string'},'type':{'type':'string'},'param':" TEXT_OR_NULL
               ",'code':{'type':'integer','minimum':400,'maximum':599}}}}}" },
    { "Usage", "{'type':'object','required':['prompt_tokens','completion_tokens','total_tokens'],'properties':{'prompt_"
               "tokens':" COUNT ",'completion_tokens':" COUNT ",'total_tokens':" COUNT
               ",'prompt_tokens_details':{'type':['object','null'],'properties':{'cached_tokens':" COUNT "}}}}" },
    { "Timings",
      "{'type':'object','properties':{'queue_ms':{'type':'number'},'ttft_ms':{'type':'number'},'prompt_n':" COUNT
      ",'prompt_ms':{'type':'number'},'prompt_per_second':{'type':'number'},'cached_n':" COUNT ",'predicted_n':" COUNT
      ",'predicted_ms':{'type':'number'},'predicted_per_second':{'type':'number'}}}" },
    { "CompletionLogprobs",
      "{'type':'object','required':['tokens','token_logprobs','top_logprobs','text_offset'],'properties':{"
      "'tokens':{'type':'array','items':{'type':'string'}},'token_logprobs':{'type':'array','items':{'type':['number','"
      "null']}},"
      "'top_logprobs':{'type':'array','items':{'type':['object','null'],'additionalProperties':{'type':'number'}}},"
      "'text_offset':{'type':'array','items':" COUNT "}}}" },
    { "Completion",
      "{'type':'object','required':['id','object','created','model','choices','usage'],'properties':{'id':{'type':'"
      "string'},"
      "'object':{'const':'text_completion'},'created':{'type':'integer'},'model':{'type':'string'},'choices':{'type':'"
      "array','minItems':1,"
      "'items':{'type':'object','required':['index','text','logprobs','finish_reason','stop_reason'],'properties':{'"
      "index':" COUNT ",'text':{'type':'string'},'logprobs':" OR_NULL(
          REF("CompletionLogprobs")) "," FINISH "}}},'usage':" REF("Usage") ",'system_fingerprint':" TEXT_OR_NULL
                                                                            ",'timings':" REF("Timings") "}}" },
    { "ToolCall", "{'type':'object','required':['id','type','function'],'properties':{'id':{'type':'string'},'type':{'"
                  "const':'function'},"
                  "'function':{'type':'object','required':['name','arguments'],'properties':{'name':{'type':'string'},'"
                  "arguments':{'type':"
                  "'string'}}}}}" },
    { "ChatLogprobs", "{'type':'object','required':['content'],'properties':{'content':{'type':['array','null'],'items'"
                      ":{'type':'object','required':['token',"
                      "'logprob','bytes','top_logprobs'],'properties':{" CHAT_TOKEN
                      ",'top_logprobs':{'type':'array','items':{'type':'object','required':["
                      "'token','logprob','bytes'],'properties':{" CHAT_TOKEN "}}}}}}}}" },
    { "ChatCompletion",
      "{'type':'object','required':['id','object','created','model','choices','usage'],'properties':{'id':{'type':'"
      "string'},"
      "'object':{'const':'chat.completion'},'created':{'type':'integer'},'model':{'type':'string'},'choices':{'type':'"
      "array','minItems':1,"
      "'items':{'type':'object','required':['index','message','logprobs','finish_reason','stop_reason'],'properties':{'"
      "index':" COUNT ",'message':{'type':'object','required':['role','content'],'properties':{'role':{'const':'"
                      "assistant'},'content':" TEXT_OR_NULL ",'reasoning':" TEXT_OR_NULL
      ",'tool_calls':{'type':'array','items':" REF("ToolCall") "}}},'logprobs':" OR_NULL(
          REF("ChatLogprobs")) "," FINISH "}}},'usage':" REF("Usage") ",'system_fingerprint':" TEXT_OR_NULL
                                                                      ",'timings':" REF("Timings") "}}" },
    { "Model", "{'type':'object','required':['id','object','created','owned_by','root','parent','max_model_len','"
               "permission'],'properties':{"
               "'id':{'type':'string'},'object':{'const':'model'},'created':{'type':'integer'},'owned_by':{'type':'"
               "string'},'root':{'type':"
               "'string'},'parent':{'type':'null'},'max_model_len':{'type':'integer','minimum':1},'permission':{'type':"
               "'array'}}}" },
    { "Models", "{'type':'object','required':['object','data'],'properties':{'object':{'const':'list'},'data':{'type':'"
                "array','items':" REF("Model") "}}}" },
    { "Tokens",
      "{'type':'object','required':['count','max_model_len','tokens','token_strs'],'properties':{'count':" COUNT
      ",'max_model_len':{'type':'integer','minimum':1},'tokens':{'type':'array','items':" COUNT
      "},'token_strs':{'type':['array','null'],'items':{'type':'string'}}}}" },
    { "Text", "{'type':'object','required':['prompt'],'properties':{'prompt':{'type':'string'}}}" },
    { "TokenizerInfo",
      "{'type':'object','required':['tokenizer_class','bos_token','eos_token','pad_token','unk_token','chat_template','"
      "vocab_size',"
      "'model_max_length'],'properties':{'tokenizer_class':" TEXT_OR_NULL ",'bos_token':" TEXT_OR_NULL
      ",'eos_token':" TEXT_OR_NULL ",'pad_token':" TEXT_OR_NULL ",'unk_token':" TEXT_OR_NULL
      ",'chat_template':" TEXT_OR_NULL ",'vocab_size':" COUNT ",'model_max_length':{'type':'integer','minimum':1}}}" },
    { "Health", "{'type':'object','required':['status'],'properties':{'status':{'type':'string'},'progress':{'type':'"
                "number','minimum':0,"
                "'maximum':1}}}" },
    { "Version", "{'type':'object','required':['version','commit','isa','device'],'properties':{'version':{'type':'"
                 "string'},'commit':" TEXT_OR_NULL ",'isa':" TEXT_OR_NULL ",'device':" TEXT_OR_NULL "}}" },
    { "Load", "{'type':'object','required':['server_load'],'properties':{'server_load':" COUNT "}}" },
    { "ServerInfo",
      "{'type':'object','required':['model_path','tokenizer_path','is_generation','internal_states'],'properties':{"
      "'model_path':{'type':'string'},'tokenizer_path':{'type':'string'},'is_generation':{'const':true},"
      "'internal_states':{'type':'array'}}}" },
    { "ExpertLoad",
      "{'type':'object','required':['window_s','tokens','layers'],'properties':{'window_s':{'type':'number'},'tokens'"
      ":" COUNT ",'layers':{'type':'array','items':{'type':'object','required':['layer','mode','routed','shared'],'"
                "properties':{'layer':" COUNT ",'mode':{'type':'string'},'routed':{'type':'array','items':" COUNT
      "},'shared':{'type':'array','items':" COUNT "},'jain':{'type':['number','null']},'max_over_mean':{'type':['"
                                                  "number','null']},'top':{'type':'array','items':" COUNT
      "},'bottom':{'type':'array','items':" COUNT "},'bad_rows':" COUNT "}}}}}" },
    { "Object", "{'type':'object'}" },
};

json_t *mf_openapi_answers(void)
{
    json_t *all = json_object();
    for (size_t i = 0; all && i < sizeof answers / sizeof *answers; i++) {
        if (json_object_set_new(all, answers[i][0], mf_openapi_text(answers[i][1])) != 0) {
            json_decref(all);
            return NULL;
        }
    }
    return all;
}
