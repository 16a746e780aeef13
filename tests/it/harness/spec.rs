//! Holds an answer of the service against `openapi.yaml`.
//!
//! Called for every answer that a test gets. An answer that the specification does not describe is an error, and so is
//! a field that it does not know: clients have to tolerate new fields, the specification has to name them.
//!
//! Invariant: whatever [`check`] cannot judge is an error; nothing passes because it was not understood.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, LazyLock};

use jsonschema::Validator;
use ringback::http::operating::OPENAPI;
use serde_json::{Map, Value, json};

/// So many faults of one body are told.
const FAULTS_MAX: usize = 5;

/// The specification, read.
pub(crate) static DOCUMENT: LazyLock<Value> =
    LazyLock::new(|| serde_norway::from_str(OPENAPI).expect("openapi.yaml is YAML"));

static SPEC: LazyLock<Spec> = LazyLock::new(|| Spec::read(&DOCUMENT));

/// Does this answer fit what the specification says of the operation? `path` is the concrete one, with or without its
/// query; the error says precisely what does not fit.
pub(crate) fn check(
    method: &str,
    path: &str,
    status: u16,
    content_type: Option<&str>,
    body: &[u8],
) -> Result<(), String> {
    let response = SPEC.response(method, path, status);
    response
        .and_then(|response| response.check(method, content_type, body))
        .map_err(|fault| format!("{method} {path} answered {status}, but {fault}"))
}

/// Is this what a receiver is told to expect? The callback of a job is what an endpoint gets of it.
pub(crate) fn check_webhook(body: &[u8]) -> Result<(), String> {
    static BY_TYPE: LazyLock<HashMap<String, Arc<Validator>>> = LazyLock::new(webhooks);
    let body = parse(body)?;
    let topic = body["type"].as_str().ok_or("the body has no type")?;
    let known = BY_TYPE.get(topic).or_else(|| BY_TYPE.get("")).ok_or("openapi.yaml has no webhook for it")?;
    fits(known, &body)
}

/// What a webhook's body is, by the topics that its schema names; under the empty one, that of any other.
fn webhooks() -> HashMap<String, Arc<Validator>> {
    let mut by_type = HashMap::new();
    for webhook in DOCUMENT["webhooks"].as_object().expect("webhooks").values() {
        let body =
            &resolve(&DOCUMENT, webhook)["post"]["requestBody"]["content"]["application/json"]["schema"];
        let topic = &resolve(&DOCUMENT, body)["properties"]["type"];
        let one = topic.get("const").into_iter();
        let topics = one.chain(topic.get("enum").and_then(Value::as_array).into_iter().flatten());
        let mut topics: Vec<String> = topics.filter_map(Value::as_str).map(str::to_owned).collect();
        if topics.is_empty() {
            topics.push(String::new());
        }
        let check = Arc::new(validator(&DOCUMENT, body));
        by_type.extend(topics.into_iter().map(|topic| (topic, check.clone())));
    }
    by_type
}

/// All operations: the template of the path, and the method in capitals.
pub(crate) fn operations() -> Vec<(String, String)> {
    SPEC.operations.iter().map(|one| (one.template.clone(), one.method.clone())).collect()
}

/// A validator for a schema of the document; references into the document are followed.
pub(crate) fn validator(document: &Value, schema: &Value) -> Validator {
    let shut = |value: &Value| closed(document, value);
    let bundle = json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "components": { "schemas": shut(&document["components"]["schemas"]) },
        "allOf": [shut(schema)],
    });
    jsonschema::options()
        .should_validate_formats(true)
        .build(&bundle)
        .unwrap_or_else(|error| panic!("a schema in openapi.yaml is wrong: {error}: {schema}"))
}

/// Says what does not fit, with pointers into the body.
pub(crate) fn fits(validator: &Validator, instance: &Value) -> Result<(), String> {
    let mut faults: Vec<String> =
        validator.iter_errors(instance).map(|error| format!("{}: {error}", error.instance_path())).collect();
    if faults.is_empty() {
        return Ok(());
    }
    let more = faults.len().saturating_sub(FAULTS_MAX);
    faults.truncate(FAULTS_MAX);
    let more = if more > 0 { format!("; and {more} more") } else { String::new() };
    Err(format!("the body does not fit its schema: {}{more}", faults.join("; ")))
}

/// What stands behind `{"$ref": "#/…"}`, or the value itself.
pub(crate) fn resolve<'a>(document: &'a Value, value: &'a Value) -> &'a Value {
    let Some(reference) = value.get("$ref").and_then(Value::as_str) else { return value };
    let target = reference.strip_prefix('#').and_then(|pointer| document.pointer(pointer));
    resolve(
        document,
        target.unwrap_or_else(|| panic!("openapi.yaml refers to {reference}, which is not there")),
    )
}

fn parse(body: &[u8]) -> Result<Value, String> {
    serde_json::from_slice(body).map_err(|error| format!("the body is not JSON: {error}"))
}

/// A copy in which objects may have no members but those that are named.
fn closed(document: &Value, schema: &Value) -> Value {
    match schema {
        Value::Array(list) => list.iter().map(|one| closed(document, one)).collect(),
        Value::Object(map) => {
            let (mut copy, extends) = with_open_parents(document, map);
            let is_object = match map.get("type") {
                Some(Value::String(word)) => word == "object",
                Some(Value::Array(words)) => words.contains(&json!("object")),
                _ => false,
            };
            let names = extends || (is_object && map.contains_key("properties"));
            if names && !map.contains_key("additionalProperties") {
                copy.insert("unevaluatedProperties".to_owned(), json!(false));
            }
            Value::Object(copy)
        }
        other => other.clone(),
    }
}

/// Members closed; but what is extended with `allOf` must itself stay open, or nothing could be added to it.
fn with_open_parents(document: &Value, map: &Map<String, Value>) -> (Map<String, Value>, bool) {
    let mut copy: Map<String, Value> =
        map.iter().map(|(name, value)| (name.clone(), closed(document, value))).collect();
    let mut extends = false;
    for part in copy.get_mut("allOf").and_then(Value::as_array_mut).into_iter().flatten() {
        if part.get("$ref").is_some() {
            extends = true;
            let mut parent = closed(document, resolve(document, part));
            parent.as_object_mut().expect("a schema").remove("unevaluatedProperties");
            *part = parent;
        }
    }
    (copy, extends)
}

struct Spec {
    operations: Vec<Operation>,
    no_such_address: Arc<Response>,
    no_such_method: Arc<Response>,
}

struct Operation {
    template: String,
    method: String,
    responses: BTreeMap<String, Arc<Response>>,
}

/// The bodies that an answer may have, by media type; none: it has no body.
struct Response(BTreeMap<String, Validator>);

impl Spec {
    fn read(document: &Value) -> Self {
        // Most answers are shared; each is compiled once.
        let mut shared: HashMap<String, Arc<Response>> = HashMap::new();
        let mut response = |value: &Value| match value.get("$ref").and_then(Value::as_str) {
            None => Arc::new(Response::read(document, value)),
            Some(name) => shared
                .entry(name.to_owned())
                .or_insert_with(|| Arc::new(Response::read(document, resolve(document, value))))
                .clone(),
        };
        let mut operations = Vec::new();
        for (template, item) in document["paths"].as_object().expect("paths") {
            for (method, operation) in item.as_object().expect("a path item") {
                if method == "parameters" {
                    continue;
                }
                let responses = operation["responses"].as_object().expect("responses");
                operations.push(Operation {
                    template: template.clone(),
                    method: method.to_ascii_uppercase(),
                    responses: responses
                        .iter()
                        .map(|(status, value)| (status.clone(), response(value)))
                        .collect(),
                });
            }
        }
        let component = |name| json!({ "$ref": format!("#/components/responses/{name}") });
        Self {
            operations,
            no_such_address: response(&component("NotFound")),
            no_such_method: response(&component("MethodNotAllowed")),
        }
    }

    fn response(&self, method: &str, path: &str, status: u16) -> Result<&Response, String> {
        let path = path.split(['?', '#']).next().unwrap_or_default();
        let mut there: Vec<&Operation> =
            self.operations.iter().filter(|one| matches(&one.template, path)).collect();
        // `/v1/jobs/batch` goes before `/v1/jobs/{id}`.
        let fewest = there.iter().map(|one| one.template.matches('{').count()).min();
        there.retain(|one| Some(one.template.matches('{').count()) == fewest);
        let Some(first) = there.first() else {
            return if status == 404 {
                Ok(&self.no_such_address)
            } else {
                Err("openapi.yaml has no such path".to_owned())
            };
        };
        let asked = if method == "HEAD" { "GET" } else { method };
        match there.iter().find(|one| one.method == asked) {
            Some(operation) => {
                operation.responses.get(&status.to_string()).map(AsRef::as_ref).ok_or_else(|| {
                    let known: Vec<&str> = operation.responses.keys().map(String::as_str).collect();
                    format!("{asked} {} documents only {}", operation.template, known.join(", "))
                })
            }
            None if status == 405 => Ok(&self.no_such_method),
            None => Err(format!("{} documents no {method}", first.template)),
        }
    }
}

fn matches(template: &str, path: &str) -> bool {
    let (mut names, mut parts) = (template.split('/'), path.split('/'));
    loop {
        match (names.next(), parts.next()) {
            (None, None) => return true,
            (Some(name), Some(part)) if name == part || (name.starts_with('{') && !part.is_empty()) => {}
            _ => return false,
        }
    }
}

impl Response {
    fn read(document: &Value, response: &Value) -> Self {
        let none = Map::new();
        let content = response.get("content").and_then(Value::as_object).unwrap_or(&none);
        let compile = |media: &Value| validator(document, &media["schema"]);
        Self(content.iter().map(|(name, media)| (name.clone(), compile(media))).collect())
    }

    fn check(&self, method: &str, content_type: Option<&str>, body: &[u8]) -> Result<(), String> {
        if method == "HEAD" || self.0.is_empty() {
            return if body.is_empty() { Ok(()) } else { Err("it may have no body".to_owned()) };
        }
        let essence = content_type
            .unwrap_or_default()
            .split(';')
            .next()
            .unwrap_or_default()
            .trim()
            .to_ascii_lowercase();
        let validator = self.0.get(&essence).ok_or_else(|| {
            let known: Vec<&str> = self.0.keys().map(String::as_str).collect();
            format!("its content type is {content_type:?}, and openapi.yaml documents {}", known.join(", "))
        })?;
        let instance = if essence.ends_with("yaml") {
            serde_norway::from_slice(body).map_err(|error| format!("the body is not YAML: {error}"))?
        } else {
            parse(body)?
        };
        fits(validator, &instance)
    }
}

const JSON: Option<&str> = Some("application/json");

/// An answer that fits, to be spoiled.
fn job() -> Value {
    DOCUMENT["components"]["examples"]["SucceededJob"]["value"].clone()
}

fn check_job(change: impl FnOnce(&mut Map<String, Value>)) -> Result<(), String> {
    let mut job = job();
    change(job.as_object_mut().expect("an object"));
    check("GET", "/v1/jobs/job_x?wait_s=1", 200, JSON, job.to_string().as_bytes())
}

#[test]
fn a_fitting_answer_passes() {
    assert_eq!(check_job(|_| ()), Ok(()));
    assert_eq!(check("HEAD", "/v1/jobs/job_x", 200, JSON, b""), Ok(()));
    assert_eq!(check("GET", "/openapi.yaml", 200, Some("application/yaml"), OPENAPI.as_bytes()), Ok(()));
    let event = &DOCUMENT["components"]["examples"]["JobSucceeded"]["value"];
    assert_eq!(check_webhook(event.to_string().as_bytes()), Ok(()));
    assert!(check_webhook(br#"{"type":"job.failed","timestamp":"2026-11-02T08:15:31Z","data":{}}"#).is_err());
    assert!(
        check_webhook(br#"{"type":"a.b","timestamp":"2026-11-02T08:15:31Z","data":{},"more":1}"#).is_err()
    );
    let delivery = &DOCUMENT["components"]["examples"]["Delivered"]["value"];
    assert_eq!(check("GET", "/v1/deliveries/d", 200, JSON, delivery.to_string().as_bytes()), Ok(()));
}

#[test]
fn an_answer_that_does_not_fit_is_refused_with_the_reason() {
    let refused = |result: Result<(), String>, reason: &str| {
        let fault = result.expect_err(reason);
        assert!(fault.contains(reason), "{reason}: {fault}");
    };
    refused(check_job(|job| job["attempt"] = json!("one")), "/attempt");
    refused(check_job(|job| drop(job.remove("kind"))), "\"kind\" is a required property");
    refused(check_job(|job| drop(job.insert("surprise".to_owned(), json!(1)))), "surprise");
    refused(check_job(|job| job["result"] = json!({"status": 200})), "/result");
    refused(check_job(|job| job["created_at"] = json!("yesterday")), "/created_at");
    refused(check_job(|job| job["finished_at"] = json!(null)), "/finished_at");
    let list = json!({"data": [job(), 7], "next_cursor": null});
    refused(check("GET", "/v1/jobs", 200, JSON, list.to_string().as_bytes()), "/data/1");
    let mut delivery = DOCUMENT["components"]["examples"]["Delivered"]["value"].clone();
    delivery["surprise"] = json!(1);
    refused(check("GET", "/v1/deliveries/d", 200, JSON, delivery.to_string().as_bytes()), "surprise");
    refused(check("GET", "/v1/jobs", 200, JSON, b"{"), "not JSON");
    refused(check("GET", "/v1/jobs", 200, Some("text/html"), b"{}"), "text/html");
    refused(check("GET", "/v1/jobs", 200, None, b"{}"), "None");
    refused(check("GET", "/v1/jobs", 302, None, b""), "documents only 200");
    refused(check("GET", "/v1/jobz", 200, JSON, b"{}"), "no such path");
    refused(check("GET", "/v1/jobs/batch", 200, JSON, b"{}"), "documents no GET");
    refused(check("HEAD", "/v1/jobs", 200, JSON, b"{}"), "no body");
}

#[test]
fn a_problem_fits_only_its_own_status() {
    let problem = |status: u16, code: &str| {
        let body = json!({"type": format!("urn:ringback:problem:{code}"), "title": "t", "status": status, "detail": "d",
            "instance": "urn:ringback:request:1", "code": code});
        check("GET", "/v1/nothing", 404, Some("application/problem+json"), body.to_string().as_bytes())
    };
    assert_eq!(problem(404, "not-found"), Ok(()));
    assert!(problem(404, "conflict").is_err());
    assert!(problem(409, "not-found").is_err());
}
