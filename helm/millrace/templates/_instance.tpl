{{- /* dagster.yaml, workspace.yaml and the environment. No secret is a literal here: the whole instance travels in the
     arguments of every run pod. dagster.yaml takes (dict "root" $), with "migration" true for the one that makes the tables. */ -}}

{{- define "millrace.dagsterYaml" -}}
{{- $isPooled := and .root.Values.pgbouncer.enabled (not .migration) -}}
{{- $makesTables := .migration | default false -}}
{{- with .root -}}
{{- $run := dict "root" . "component" "run_worker" "data" (list "lake" "logs") "scratch" .Values.runs.scratch -}}
{{- $logs := .Values.computeLogs -}}
{{- $root := . -}}
{{- with .Values.runs -}}
telemetry: { enabled: false }
nux: { enabled: false }
storage:
  postgres:
    postgres_db:
      username: { env: DAGSTER_PG_USERNAME }
      password: { env: DAGSTER_PG_PASSWORD }
      hostname: { env: DAGSTER_PG_HOST }
      port: { env: DAGSTER_PG_PORT }
      db_name: { env: DAGSTER_PG_DB }
      scheme: postgresql+psycopg2 # the bare scheme means psycopg 3 to SQLAlchemy 2.1
      # libpq takes the TLS mode from PGSSLMODE; the pooler, beside us, has none on this side.
      params: { connect_timeout: 10, application_name: dagster{{ if $isPooled }}, sslmode: disable{{ end }} }
    should_autocreate_tables: {{ $makesTables }} # only the migration makes them
compute_logs:
  {{- if eq $logs.type "s3" }}
  {{- $url := urlParse $logs.url }}
  module: dagster_aws.s3.compute_log_manager
  class: S3ComputeLogManager
  config:
    bucket: {{ $url.host | quote }}
    prefix: {{ include "millrace.computeLogPrefix" $root | quote }}
    region: {{ $root.Values.s3.region | quote }}
    {{- with $root.Values.s3.endpoint }}
    endpoint_url: {{ . | quote }}
    {{- end }}
    upload_interval: 30 # seconds between looks at a run that is under way
    skip_empty_files: true
  {{- else if eq $logs.type "volume" }}
  module: dagster.core.storage.local_compute_log_manager
  class: LocalComputeLogManager
  config: { base_dir: /var/lib/millrace-logs }
  {{- else }}
  module: dagster.core.storage.noop_compute_log_manager
  class: NoOpComputeLogManager
  {{- end }}
local_artifact_storage:
  module: dagster.core.storage.root
  class: LocalArtifactStorage
  config: { base_dir: /var/lib/millrace/dagster }
run_launcher:
  module: pipeline.launch.launcher
  class: RunLauncher
  config:
    job_namespace: {{ include "millrace.runNamespace" $root | quote }}
    job_image: {{ include "millrace.imageName" (dict "root" $root "image" $root.Values.image) }} # of a location that names none
    image_pull_policy: {{ $root.Values.image.pullPolicy }}
    {{- with $root.Values.imagePullSecrets }}
    image_pull_secrets: {{- toYaml . | nindent 6 }}
    {{- end }}
    service_account_name: {{ include "millrace.fullname" $root }}-run
    instance_config_map: {{ include "millrace.fullname" $root }}-instance # required, though nothing mounts it
    dagster_home: /opt/millrace/dagster
    fail_pod_on_run_failure: true # the Job of a failed run is a failed Job, to metrics too
    labels: # these replace Dagster's own and make run pods part of the release
      app.kubernetes.io/name: {{ $root.Chart.Name }}
      app.kubernetes.io/instance: {{ $root.Release.Name | quote }}
    env_config_maps: [{{ include "millrace.fullname" $root }}-environment]
    volumes: {{- include "millrace.volumes" $run | nindent 6 }}
    volume_mounts: {{- include "millrace.volumeMounts" $run | nindent 6 }}
    security_context: {{- include "millrace.containerSecurity" $ | nindent 6 }}
    resources: {{- toYaml .resources | nindent 6 }}
    run_k8s_config:
      container_config:
        env: {{- include "millrace.env" $run | nindent 10 }}
        {{- with $root.Values.extraEnvFrom }}
        env_from: {{- toYaml . | nindent 10 }}
        {{- end }}
      pod_template_spec_metadata:
        annotations: {{- toYaml .podAnnotations | nindent 10 }}
      pod_spec_config:
        automount_service_account_token: false
        enable_service_links: false
        security_context: {{- include "millrace.podSecurity" 10001 | nindent 10 }}
        termination_grace_period_seconds: 60
        {{- with include "millrace.priorityClass" (list $root "runs") }}
        priority_class_name: {{ . }}
        {{- end }}
        {{- with include "millrace.besideVolumes" $run }}
        affinity: {{- . | nindent 10 }}
        {{- end }}
        {{- with .nodeSelector }}
        node_selector: {{- toYaml . | nindent 10 }}
        {{- end }}
        {{- with .tolerations }}
        tolerations: {{- toYaml . | nindent 10 }}
        {{- end }}
      job_spec_config: { ttl_seconds_after_finished: 3600, backoff_limit: 0 }
    # Without this list a run tag may set image, service account, hostPath and privileged: a tag would be a way to root.
    only_allow_user_defined_k8s_config_fields:
      container_config: { resources: true }
      pod_spec_config: { node_selector: true, tolerations: true }
      namespace: false
    only_allow_user_defined_env_vars: []
    out_of_memory: { factor: {{ .outOfMemory.factor }}, limit: {{ .outOfMemory.limit }} }
run_coordinator:
  module: dagster.core.run_coordinator
  class: QueuedRunCoordinator
  config:
    dequeue_interval_seconds: {{ .dequeueIntervalSeconds }}
    dequeue_use_threads: true
    dequeue_num_workers: 4
    max_user_code_failure_retries: 360 # an hour; default 0: a restart of the code server loses queued runs
    user_code_failure_retry_delay: 10
concurrency:
  runs:
    max_concurrent_runs: {{ .maxConcurrent }}
    tag_concurrency_limits: {{- toYaml .tagConcurrencyLimits | nindent 6 }}
  pools: { default_limit: {{ .defaultPoolLimit }}, granularity: run }
run_monitoring:
  enabled: true
  start_timeout_seconds: {{ .startTimeoutSeconds }}
  cancel_timeout_seconds: 60
  {{- with .maxRuntimeSeconds }}
  max_runtime_seconds: {{ . }}
  {{- end }}
  max_resume_run_attempts: 0
  poll_interval_seconds: 20
  free_slots_after_run_end_seconds: 60 # without it a killed run keeps its pool slot for ever
run_retries: { enabled: true, max_retries: {{ .maxRetries }}, retry_on_asset_or_op_failure: false } # crashes only
retention:
  {{- range list "schedule" "sensor" "auto_materialize" }}
  {{ . }}: { purge_after_days: {{ $root.Values.retention.days }} }
  {{- end }}
sensors: { use_threads: true, num_workers: 4 }
schedules: { use_threads: true, num_workers: 4 }
{{- end }}
{{- end }}
{{- end -}}

{{- /* Never empty: what is old under it is deleted. */ -}}
{{- define "millrace.computeLogPrefix" -}}
{{ (urlParse .Values.computeLogs.url).path | trimAll "/" | default "compute-logs" }}
{{- end -}}

{{- define "millrace.workspaceYaml" -}}
load_from:
  {{- range .Values.codeLocations }}
  - grpc_server:
      host: {{ include "millrace.name" (dict "root" $ "component" "code" "location" .name) }}
      port: 4000
      location_name: {{ .name }}
  {{- end }}
{{- end -}}

{{- define "millrace.environment" -}}
DAGSTER_HOME: /opt/millrace/dagster
DAGSTER_PG_DB: dagster
# A tick that takes longer fails with a text about an unreachable code location; the default is 60.
DAGSTER_SCHEDULE_GRPC_TIMEOUT_SECONDS: "300"
DAGSTER_SENSOR_GRPC_TIMEOUT_SECONDS: "300"
HOME: /tmp
PGSSLMODE: {{ .Values.database.tls.mode }}
{{- if .Values.database.tls.caSecret }}
PGSSLROOTCERT: /etc/millrace/database-ca/ca.crt
{{- end }}
PYTHONUNBUFFERED: "1"
MILLRACE_STATE_DIR: /var/lib/millrace
MILLRACE_INSTANCE_DIR: /opt/millrace/dagster
{{- if ne .Values.computeLogs.type "none" }}
MILLRACE_COMPUTE_LOGS: {{ if eq .Values.computeLogs.type "s3" }}s3://{{ (urlParse .Values.computeLogs.url).host }}/{{ include "millrace.computeLogPrefix" . }}{{ else }}/var/lib/millrace-logs{{ end }}
{{- end }}
{{- with .Values.projectDir }}
MILLRACE_PROJECT_DIR: {{ . }}
{{- end }}
MILLRACE_LAKE_DATA: {{ eq .Values.lake.type "s3" | ternary .Values.lake.url "/var/lib/millrace-lake" }}
MILLRACE_RETENTION_DAYS: {{ .Values.retention.days | quote }}
{{- if include "millrace.usesS3" . }}
MILLRACE_S3_REGION: {{ .Values.s3.region }}
{{- with .Values.s3.endpoint }}
MILLRACE_S3_ENDPOINT: {{ . | quote }}
{{- end }}
{{- end }}
{{- end -}}

{{- define "millrace.instanceData" -}}
dagster.yaml: |
  {{- include "millrace.dagsterYaml" . | nindent 2 }}
workspace.yaml: |
  {{- include "millrace.workspaceYaml" .root | nindent 2 }}
{{- end -}}

{{- define "millrace.configChecksum" -}}
{{ print (include "millrace.instanceData" (dict "root" .)) (include "millrace.environment" .) | sha256sum }}
{{- end -}}
