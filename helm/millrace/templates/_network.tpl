{{- /* NetworkPolicies. What a component's policy does not name is denied. */ -}}

{{- /* Takes $self; "clients": components that may reach "port"; "peers": further ones, as Kubernetes writes them;
     "reaches": names of the flows below; "name" and "annotations" replace its own. */ -}}
{{- define "millrace.networkPolicy" -}}
{{- if .root.Values.networkPolicy.enabled }}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata:
  name: {{ .name | default (include "millrace.name" .) }}
  labels: {{- include "millrace.labels" . | nindent 4 }}
  {{- with .annotations }}
  annotations: {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .namespace }}
  namespace: {{ . | quote }}
  {{- end }}
spec:
  podSelector:
    matchLabels: {{- include "millrace.selectorLabels" . | nindent 6 }}
  policyTypes: [Ingress, Egress]
  {{- if or .clients .peers }}
  ingress:
    - from:
        {{- range .clients }}
        {{- include "millrace.peer" (dict "root" $.root "component" .) | nindent 8 }}
        {{- end }}
        {{- with .peers }}{{ toYaml . | nindent 8 }}{{ end }}
      ports: [{ port: {{ .port }} }]
  {{- end }}
  egress:
    {{- include "millrace.flow.dns" .root | nindent 4 }}
    {{- range .reaches }}
    {{- include (printf "millrace.flow.%s" .) $.root | nindent 4 }}
    {{- end }}
{{- end }}
{{- end -}}

{{- define "millrace.peer" -}}
- podSelector:
    matchLabels: {{- include "millrace.selectorLabels" . | nindent 6 }}
  {{- if and (eq .component "run_worker") .root.Values.runs.namespace }}
  namespaceSelector:
    matchLabels: { kubernetes.io/metadata.name: {{ .root.Values.runs.namespace | quote }} }
  {{- end }}
{{- end -}}

{{- define "millrace.flow.dns" -}}
- {{ with .Values.networkPolicy.dns -}}
  ports: [{{ range $i, $port := .ports }}{{ if $i }}, {{ end }}{ port: {{ $port }}, protocol: UDP }, { port: {{ $port }}, protocol: TCP }{{ end }}]
  {{- with .to }}
  to: {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- end }}
{{- end -}}

{{- /* Takes a block of `to` and `ports`. */ -}}
{{- define "millrace.flow" -}}
- ports: [{{ range $i, $port := .ports }}{{ if $i }}, {{ end }}{ port: {{ $port }} }{{ end }}]
  {{- with .to }}
  to: {{- toYaml . | nindent 4 }}
  {{- end }}
{{- end -}}

{{- /* Takes the root and a component of this release with its port: (list $ "postgresql" 5432). */ -}}
{{- define "millrace.flow.toComponent" -}}
- ports: [{ port: {{ index . 2 }} }]
  to:
    - podSelector:
        matchLabels: {{- include "millrace.selectorLabels" (dict "root" (index . 0) "component" (index . 1)) | nindent 10 }}
      namespaceSelector:
        matchLabels: { kubernetes.io/metadata.name: {{ (index . 0).Release.Namespace | quote }} }
{{- end -}}

{{- define "millrace.flow.apiServer" -}}
{{ include "millrace.flow" .Values.networkPolicy.apiServer }}
{{- end -}}

{{- define "millrace.flow.codeLocations" -}}
{{ include "millrace.flow.toComponent" (list . "code" 4000) }}
{{- end -}}

{{- define "millrace.flow.webserver" -}}
{{ include "millrace.flow.toComponent" (list . "webserver" 3001) }}
{{- end -}}

{{- define "millrace.flow.exporter" -}}
{{ include "millrace.flow.toComponent" (list . "exporter" 9464) }}
{{- end -}}

{{- define "millrace.flow.alertmanager" -}}
{{ include "millrace.flow.toComponent" (list . "alertmanager" 9093) }}
{{- end -}}

{{- define "millrace.flow.ownAlertmanager" -}}
{{ include "millrace.flow" .Values.networkPolicy.alertmanager }}
{{- end -}}

{{- /* The hosts whose certificates the exporter watches, host or host:port, with commas between. */ -}}
{{- define "millrace.certificateHosts" -}}
{{- $hosts := .Values.exporter.certificateHosts }}
{{- if and .Values.ingress.enabled .Values.ingress.tlsSecret }}{{ $hosts = prepend $hosts .Values.ingress.host }}{{ end }}
{{- join "," $hosts }}
{{- end -}}

{{- define "millrace.flow.certificates" -}}
{{- $flow := .Values.networkPolicy.certificates }}
{{- $ports := $flow.ports }}
{{- range splitList "," (include "millrace.certificateHosts" .) }}
{{- $ports = append $ports (regexFind ":[0-9]+$" . | trimPrefix ":" | default "443" | int) }}
{{- end }}
{{ include "millrace.flow" (dict "ports" (uniq $ports) "to" $flow.to) }}
{{- end -}}

{{- define "millrace.flow.receivers" -}}
{{ include "millrace.flow" .Values.networkPolicy.receivers }}
{{- end -}}

{{- /* The server itself, and not a pooler before it. */ -}}
{{- define "millrace.flow.databaseServer" -}}
{{- if .Values.postgresql.enabled -}}
{{ include "millrace.flow.toComponent" (list . "postgresql" 5432) }}
{{- else -}}
{{ include "millrace.flow" .Values.networkPolicy.database }}
{{- end }}
{{- end -}}

{{- define "millrace.flow.database" -}}
{{ include "millrace.flow.databaseServer" . }}
{{- if .Values.pgbouncer.enabled }}
{{ include "millrace.flow.toComponent" (list . "pgbouncer" 6432) }}
{{- end }}
{{- end -}}

{{- define "millrace.flow.s3" -}}
{{- if include "millrace.usesS3" . }}{{ include "millrace.flow" .Values.networkPolicy.s3 }}{{ end -}}
{{- end -}}

{{- define "millrace.flow.sources" -}}
{{ include "millrace.flow" .Values.networkPolicy.sources }}
{{- end -}}

{{- define "millrace.releaseLabels" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name | quote }}
{{- end -}}

{{- /* Every pod of the release. Whether it may is said by its own policy. */ -}}
{{- define "millrace.releasePeers" -}}
- podSelector:
    matchLabels: {{- include "millrace.releaseLabels" . | nindent 6 }}
{{- with .Values.runs.namespace }}
- podSelector:
    matchLabels: {{- include "millrace.releaseLabels" $ | nindent 6 }}
  namespaceSelector:
    matchLabels: { kubernetes.io/metadata.name: {{ . | quote }} }
{{- end }}
{{- end -}}

{{- /* Who may reach the twin that is published: the controller reaches that one alone. Takes (list $ "webserver"). */ -}}
{{- define "millrace.uiPeers" -}}
{{- $component := index . 1 }}
{{- with (index . 0).Values }}
{{- range list .ingress .httpRoute }}
{{- if and .enabled (eq $component (.readOnly | ternary "webserver-read-only" "webserver")) }}{{ toYaml (index $ 0).Values.networkPolicy.ingress.from }}{{ end }}
{{- end }}
{{- end }}
{{- end -}}
