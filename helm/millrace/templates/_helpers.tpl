{{- /* Names, labels and references.
     Helpers about one component take $self: (dict "root" $ "component" "daemon"); the others take the root. */ -}}

{{- /* At most 32 characters, so that every name made of it fits the 52 that a CronJob may have. A Service's begins with
     a letter, a release's need not. */ -}}
{{- define "millrace.fullname" -}}
{{- $name := replace "." "-" .Release.Name -}}
{{- if regexMatch "^[0-9]" $name -}}
{{- printf "r%s-%s" (trunc 22 $name | trimSuffix "-") (sha256sum $name | trunc 8) -}}
{{- else if gt (len $name) 32 -}}
{{- printf "%s-%s" (trunc 23 $name | trimSuffix "-") (sha256sum $name | trunc 8) -}}
{{- else -}}
{{- $name -}}
{{- end -}}
{{- end -}}

{{- define "millrace.name" -}}
{{ include "millrace.fullname" .root }}-{{ replace "_" "-" .component }}{{ with .location }}-{{ . }}{{ end }}
{{- end -}}

{{- /* Never add to these: a Deployment's selector cannot change once it exists. */ -}}
{{- define "millrace.selectorLabels" -}}
app.kubernetes.io/name: {{ .root.Chart.Name }}
app.kubernetes.io/instance: {{ .root.Release.Name | quote }}
app.kubernetes.io/component: {{ .component }}
{{- with .location }}
dagster/code-location: {{ . }}
{{- end }}
{{- end -}}

{{- define "millrace.labels" -}}
{{ include "millrace.selectorLabels" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ .root.Chart.Name }}-{{ .root.Chart.Version }}
{{- end -}}

{{- define "millrace.metadata" -}}
name: {{ include "millrace.name" . }}
labels: {{- include "millrace.labels" . | nindent 2 }}
{{- end -}}

{{- /* Takes (dict "root" $ "image" .Values.postgresql.image). */ -}}
{{- define "millrace.imageName" -}}
{{ .image.repository }}{{ if .image.digest }}@{{ .image.digest }}{{ else }}:{{ .image.tag | default .root.Chart.AppVersion }}{{ end }}
{{- end -}}

{{- define "millrace.runNamespace" -}}
{{ .Values.runs.namespace | default .Release.Namespace }}
{{- end -}}

{{- define "millrace.databaseSecret" -}}
{{ .Values.database.existingSecret | default (printf "%s-database" (include "millrace.fullname" .)) }}
{{- end -}}

{{- /* Of the passwords of lake_reader and exporter. */ -}}
{{- define "millrace.rolesSecret" -}}
{{ .Values.database.rolesSecret | default (include "millrace.databaseSecret" .) }}
{{- end -}}

{{- /* Takes (list $ "services"). */ -}}
{{- define "millrace.priorityClass" -}}
{{- $root := index . 0 -}}
{{- with $root.Values.priorityClasses -}}
{{- if index . (index $ 1) -}}
{{ index . (index $ 1) }}
{{- else if .create -}}
{{ printf "%s-%s-%s" $root.Release.Namespace (include "millrace.fullname" $root) (index $ 1) }}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "millrace.usesS3" -}}
{{- if or (eq .Values.lake.type "s3") (eq .Values.computeLogs.type "s3") (and .Values.backup.enabled (eq .Values.backup.type "s3")) }}true{{ end -}}
{{- end -}}

{{- define "millrace.serviceAccount" -}}
---
apiVersion: v1
kind: ServiceAccount
metadata:
  {{- include "millrace.metadata" . | nindent 2 }}
  {{- if has .component (list "backup" "code" "daemon" "run" "webserver") }}{{ with .root.Values.serviceAccountAnnotations }}
  annotations: {{- toYaml . | nindent 4 }}
  {{- end }}{{ end }}
  {{- if eq .component "webserver-read-only" }}{{ with .root.Values.webserver.readOnly.serviceAccountAnnotations }}
  annotations: {{- toYaml . | nindent 4 }}
  {{- end }}{{ end }}
automountServiceAccountToken: false
{{- end -}}

{{- /* Lets one pod go at a time, and so never keeps a node from being drained; one replica needs none. */ -}}
{{- define "millrace.disruptionBudget" -}}
{{- if gt (int .replicas) 1 }}
---
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata: {{- include "millrace.metadata" . | nindent 2 }}
spec:
  maxUnavailable: 1
  selector:
    matchLabels: {{- include "millrace.selectorLabels" . | nindent 6 }}
{{- end }}
{{- end -}}

{{- /* Takes $self and "volume", one of the `volume` blocks of the values. */ -}}
{{- define "millrace.volumeClaim" -}}
{{- if not .volume.existingClaim }}
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata:
  {{- include "millrace.metadata" . | nindent 2 }}
  annotations:
    helm.sh/resource-policy: keep
spec:
  accessModes: {{- toYaml .volume.accessModes | nindent 4 }}
  {{- with .volume.storageClass }}
  storageClassName: {{ . }}
  {{- end }}
  resources:
    requests:
      storage: {{ .volume.size }}
{{- end }}
{{- end -}}
