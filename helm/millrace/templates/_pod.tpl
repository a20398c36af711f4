{{- /* The shape of every pod. A component's template adds its command, ports, probes and resources. */ -}}

{{- define "millrace.podSecurity" -}}
runAsNonRoot: true
runAsUser: {{ . }}
runAsGroup: {{ . }}
fsGroup: {{ . }}
fsGroupChangePolicy: OnRootMismatch
seccompProfile: { type: RuntimeDefault }
{{- end -}}

{{- define "millrace.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
runAsNonRoot: true
capabilities: { drop: [ALL] }
{{- end -}}

{{- /* A ReadWriteOnce volume is one node's, and the scheduler does not keep its pods together by itself. Empty where
     every volume may be on many nodes. Takes $self. */ -}}
{{- define "millrace.besideVolumes" -}}
{{- $sharing := list "backup" "code" "daemon" "run_worker" "webserver" "webserver-read-only" }}
{{- $isOne := false }}
{{- range list .root.Values.lake .root.Values.computeLogs }}
{{- if and (eq .type "volume") (not (has "ReadWriteMany" .volume.accessModes)) }}{{ $isOne = true }}{{ end }}
{{- end }}
{{- if and $isOne (has .component $sharing) -}}
podAffinity:
  requiredDuringSchedulingIgnoredDuringExecution:
    - topologyKey: kubernetes.io/hostname
      labelSelector:
        matchLabels:
          {{- include "millrace.releaseLabels" .root | nindent 10 }}
        matchExpressions:
          - { key: app.kubernetes.io/component, operator: In, values: {{ toJson $sharing }} }
{{- end }}
{{- end -}}

{{- /* What every pod of the release has, whatever its image. Takes $self; "token" mounts one for the API server;
     "bare" leaves out what this upgrade may only be about to make. */ -}}
{{- define "millrace.podBasics" -}}
{{- $values := .root.Values -}}
serviceAccountName: {{ include "millrace.name" (omit . "location") }}
automountServiceAccountToken: {{ .token | default false }}
enableServiceLinks: false
{{- with $values.imagePullSecrets }}
imagePullSecrets: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with include "millrace.priorityClass" (list .root "services") }}{{ if not $.bare }}
priorityClassName: {{ . }}
{{- end }}{{ end }}
{{- with $values.nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $values.tolerations }}
tolerations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $values.affinity }}
affinity: {{- toYaml . | nindent 2 }}
{{- else }}{{ with include "millrace.besideVolumes" . }}
affinity: {{- . | nindent 2 }}
{{- end }}{{ end }}
{{- with $values.topologyKey }}
topologySpreadConstraints:
  - maxSkew: 1
    topologyKey: {{ . }}
    whenUnsatisfiable: ScheduleAnyway
    labelSelector:
      matchLabels: {{- include "millrace.selectorLabels" $ | nindent 8 }}
{{- end }}
{{- end -}}

{{- define "millrace.podMetadata" -}}
labels: {{- include "millrace.labels" . | nindent 2 }}
annotations:
  checksum/config: {{ include "millrace.configChecksum" .root }}
{{- end -}}

{{- /* The pod of a Millrace service or job. "data" lists its volumes beside the scratch: lake, logs, backup. */ -}}
{{- define "millrace.podSpec" -}}
{{ include "millrace.podBasics" . }}
securityContext: {{- include "millrace.podSecurity" 10001 | nindent 2 }}
volumes: {{- include "millrace.volumes" . | nindent 2 }}
{{- if not .withoutDatabase }}
initContainers:
  # Says what it waits for, so that a database that cannot be reached is a line in this container's log.
  - name: wait-database
    # It ends after a while to read a Secret that was corrected meanwhile. A restore is what mends tables of another version.
    command: [millrace, wait-database, --timeout, "120"{{ if not (has .component (list "migration" "backup")) }}, --tables{{ end }}]
    {{- include "millrace.container" . | nindent 4 }}
    resources:
      requests: { cpu: 20m, memory: 64Mi }
      limits: { cpu: 1, memory: 256Mi }  # a quota may ask for both, and no value sets these
{{- end }}
{{- end -}}

{{- /* Image, environment and volumes of a Millrace container. "image" replaces the release's. */ -}}
{{- define "millrace.container" -}}
image: {{ include "millrace.imageName" (dict "root" .root "image" (.image | default .root.Values.image)) }}
imagePullPolicy: {{ .root.Values.image.pullPolicy }}
securityContext: {{- include "millrace.containerSecurity" . | nindent 2 }}
envFrom:
  - configMapRef: { name: {{ .config | default (printf "%s-environment" (include "millrace.fullname" .root)) }} }
  {{- with .root.Values.extraEnvFrom }}{{ toYaml . | nindent 2 }}{{ end }}
env: {{- include "millrace.env" . | nindent 2 }}
volumeMounts: {{- include "millrace.volumeMounts" . | nindent 2 }}
{{- end -}}

{{- /* What is not a literal; the rest is in the ConfigMap. "unpooled" keeps Dagster from the pooler; "reader" gives no
     right but those of the roles lake_reader and exporter; "env" adds to it. */ -}}
{{- define "millrace.env" -}}
{{- $values := .root.Values }}
{{- $secret := include "millrace.databaseSecret" .root }}
{{- $roles := include "millrace.rolesSecret" .root }}
{{- $keys := $values.database.secretKeys -}}
{{- if .reader -}}
- { name: DATABASE_HOST, valueFrom: { secretKeyRef: { name: {{ $secret }}, key: {{ $keys.host }} } } }
- { name: DATABASE_PORT, valueFrom: { secretKeyRef: { name: {{ $secret }}, key: {{ $keys.port }} } } }
- { name: MILLRACE_DATABASE_URL, value: host=$(DATABASE_HOST) port=$(DATABASE_PORT) } # each role has its own password
- { name: MILLRACE_LAKE_READER_PASSWORD, valueFrom: { secretKeyRef: { name: {{ $roles }}, key: {{ $keys.lakeReaderPassword }} } } }
- { name: MILLRACE_EXPORTER_PASSWORD, valueFrom: { secretKeyRef: { name: {{ $roles }}, key: {{ $keys.exporterPassword }} } } }
{{- else -}}
- { name: MILLRACE_DATABASE_URL, valueFrom: { secretKeyRef: { name: {{ $secret }}, key: {{ $keys.url }} } } }
- { name: MILLRACE_LAKE_READER_PASSWORD, valueFrom: { secretKeyRef: { name: {{ $roles }}, key: {{ $keys.lakeReaderPassword }}, optional: true } } }
{{- if and $values.pgbouncer.enabled (not .unpooled) }}
- { name: DAGSTER_PG_HOST, value: {{ include "millrace.fullname" .root }}-pgbouncer.{{ .root.Release.Namespace }} }
- { name: DAGSTER_PG_PORT, value: "6432" }
{{- else }}
- { name: DAGSTER_PG_HOST, valueFrom: { secretKeyRef: { name: {{ $secret }}, key: {{ $keys.host }} } } }
- { name: DAGSTER_PG_PORT, valueFrom: { secretKeyRef: { name: {{ $secret }}, key: {{ $keys.port }} } } }
{{- end }}
- { name: DAGSTER_PG_USERNAME, valueFrom: { secretKeyRef: { name: {{ $secret }}, key: {{ $keys.username }} } } }
- { name: DAGSTER_PG_PASSWORD, valueFrom: { secretKeyRef: { name: {{ $secret }}, key: {{ $keys.password }} } } }
{{- with $values.s3 }}{{ if and .existingSecret (include "millrace.usesS3" $.root) }}
- { name: AWS_ACCESS_KEY_ID, valueFrom: { secretKeyRef: { name: {{ .existingSecret }}, key: {{ .secretKeys.accessKeyId }} } } }
- { name: AWS_SECRET_ACCESS_KEY, valueFrom: { secretKeyRef: { name: {{ .existingSecret }}, key: {{ .secretKeys.secretAccessKey }} } } }
{{- end }}{{ end }}
{{- end }}
{{- with .env }}
{{ toYaml . }}
{{- end }}
{{- with $values.extraEnv }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "millrace.volumes" -}}
{{- $values := .root.Values -}}
{{- $fullname := include "millrace.fullname" .root -}}
- { name: tmp, emptyDir: {} }
- { name: state, emptyDir: { {{ with .scratch }}sizeLimit: {{ . }}{{ end }} } }
- { name: instance, configMap: { name: {{ .instance | default (printf "%s-instance" $fullname) }} } }
{{- if $values.database.tls.caSecret }}
- { name: database-ca, secret: { secretName: {{ $values.database.tls.caSecret }} } }
{{- end }}
{{- range .data }}
{{- $store := index $values (get (dict "lake" "lake" "logs" "computeLogs" "backup" "backup") .) }}
{{- if eq $store.type "volume" }}
- { name: {{ . }}, persistentVolumeClaim: { claimName: {{ $store.volume.existingClaim | default (printf "%s-%s" $fullname .) }} } }
{{- end }}
{{- end }}
{{- with $values.extraVolumes }}{{ if not $.bare }}
{{ toYaml . }}
{{- end }}{{ end }}
{{- end -}}

{{- define "millrace.volumeMounts" -}}
{{- $values := .root.Values -}}
- { name: tmp, mountPath: /tmp }
- { name: state, mountPath: /var/lib/millrace }
- { name: instance, mountPath: /opt/millrace/dagster, readOnly: true }
{{- if $values.database.tls.caSecret }}
- { name: database-ca, mountPath: /etc/millrace/database-ca, readOnly: true }
{{- end }}
{{- range .data }}
{{- $store := index $values (get (dict "lake" "lake" "logs" "computeLogs" "backup" "backup") .) }}
{{- if eq $store.type "volume" }}
- { name: {{ . }}, mountPath: /var/lib/millrace-{{ . }} }
{{- end }}
{{- end }}
{{- with $values.extraVolumeMounts }}{{ if not $.bare }}
{{ toYaml . }}
{{- end }}{{ end }}
{{- end -}}

{{- /* The specification of a Job that runs "command" (of $self, with "name" and "resources") and tries it "attempts" times. */ -}}
{{- define "millrace.jobSpec" -}}
backoffLimit: {{ sub .attempts 1 }}
template:
  metadata: {{- include "millrace.podMetadata" . | nindent 4 }}
  spec:
    {{- include "millrace.podSpec" . | nindent 4 }}
    restartPolicy: Never
    containers:
      - name: {{ .name }}
        command: {{ toJson .command }}
        {{- include "millrace.container" . | nindent 8 }}
        resources: {{- toYaml .resources | nindent 10 }}
{{- end -}}

{{- /* Such a Job on a "schedule"; one that is "suspended" is for `kubectl create job --from`. */ -}}
{{- define "millrace.cronJob" -}}
apiVersion: batch/v1
kind: CronJob
metadata:
  name: {{ include "millrace.fullname" .root }}-{{ .name }}
  labels: {{- include "millrace.labels" . | nindent 4 }}
spec:
  suspend: {{ .suspended | default false }}
  schedule: {{ .schedule | quote }}
  timeZone: Etc/UTC
  concurrencyPolicy: Forbid
  startingDeadlineSeconds: 3600
  successfulJobsHistoryLimit: 1
  failedJobsHistoryLimit: 1
  jobTemplate:
    metadata:
      labels: {{- include "millrace.labels" . | nindent 8 }}
    spec: {{- include "millrace.jobSpec" . | nindent 6 }}
{{- end -}}
