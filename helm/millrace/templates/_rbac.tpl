{{- /* What the launcher needs in the namespace of run pods, and nothing else. Takes $self and "jobVerbs". */ -}}
{{- define "millrace.launcherRole" -}}
{{- $namespace := include "millrace.runNamespace" .root -}}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata:
  {{- include "millrace.metadata" . | nindent 2 }}
  namespace: {{ $namespace | quote }}
rules:
  - { apiGroups: [batch], resources: [jobs], verbs: {{ toJson .jobVerbs }} }
  - { apiGroups: [batch], resources: [jobs/status], verbs: [get] }
  - { apiGroups: [""], resources: [pods], verbs: [list, get, delete] }
  - { apiGroups: [""], resources: [pods/log], verbs: [get] }
  - { apiGroups: [""], resources: [events], verbs: [list] }
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata:
  {{- include "millrace.metadata" . | nindent 2 }}
  namespace: {{ $namespace | quote }}
roleRef: { apiGroup: rbac.authorization.k8s.io, kind: Role, name: {{ include "millrace.name" . }} }
subjects:
  - { kind: ServiceAccount, name: {{ include "millrace.name" . }}, namespace: {{ .root.Release.Namespace | quote }} }
{{- end -}}
