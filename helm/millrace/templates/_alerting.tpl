{{- /* Alert rules and Alertmanager's configuration, each kept once and rendered for the operator and for plain files. */ -}}

{{- /* The labels, as JSON, that every series and alert of this release carries and nothing else does. */ -}}
{{- define "millrace.identity" -}}
{{- dict "namespace" .Release.Namespace "release" .Release.Name | toJson -}}
{{- end -}}

{{- /* {file: {groups: […]}} as JSON. Every series and every alert is of this release: another one in the cluster is
     neither counted in nor hidden. The braces in the files are Prometheus's, so nothing here may run them through tpl. */ -}}
{{- define "millrace.rules" -}}
{{- $values := .Values.monitoring -}}
{{- $labels := include "millrace.identity" . | fromJson -}}
{{- $selector := printf `namespace="%s",release="%s"` $labels.namespace $labels.release -}}
{{- $name := `\b((?:[a-zA-Z_]\w*:)[\w:]+|(?:dagster|millrace)_\w+|up)` -}}
{{- $files := dict -}}
{{- $known := list -}}
{{- range $path, $_ := .Files.Glob "files/rules/*.yaml" -}}
{{- if not (hasSuffix ".test.yaml" $path) -}}
{{- $groups := list -}}
{{- range $group := ($.Files.Get $path | fromYaml).groups -}}
{{- $rules := list -}}
{{- range $rule := .rules -}}
{{- $expr := regexReplaceAll (print $name `\{`) $rule.expr (printf "${1}{%s," $selector) -}}
{{- $expr = regexReplaceAll (print $name `([^\w:{]|$)`) $expr (printf "${1}{%s}${2}" $selector) -}}
{{- /* What an aggregation makes has the two labels too, as a recorded series has: else the one would not match the other. */ -}}
{{- $expr = regexReplaceAll `\bby \(` $expr "by (namespace, release, " -}}
{{- $expr = regexReplaceAll `\b(sum|min|max|avg|count|group|stddev|stdvar|quantile|topk|bottomk)\(` $expr "${1} by (namespace, release) (" -}}
{{- $expr = regexReplaceAll `\bvector\(([^()]*)\)` $expr (printf `label_replace(label_replace(vector(${1}), "namespace", "%s", "", ""), "release", "%s", "", "")` $labels.namespace $labels.release) -}}
{{- $_ := set $rule "expr" (replace ",}" "}" $expr) -}}
{{- $_ := set $rule "labels" (merge (dict) $labels ($rule.labels | default dict)) -}}
{{- $override := dict -}}
{{- if $rule.alert -}}
{{- $known = append $known $rule.alert -}}
{{- $override = get $values.alerts $rule.alert | default dict -}}
{{- $base := trimSuffix "/" $values.runbookBaseUrl -}}
{{- $_ := set $rule.annotations (ternary "runbook_url" "runbook" (ne $base "")) (printf "%s/%s.md" ($base | default "deploy/runbooks") $rule.alert) -}}
{{- with $override.for }}{{ $_ := set $rule "for" . }}{{ end -}}
{{- with $override.keepFiringFor }}{{ $_ := set $rule "keep_firing_for" . }}{{ end -}}
{{- with $override.severity }}{{ $_ := set $rule.labels "severity" . }}{{ end -}}
{{- end -}}
{{- if ne (toString $override.enabled) "false" }}{{ $rules = append $rules $rule }}{{ end -}}
{{- end -}}
{{- if $rules }}{{ $groups = append $groups (merge (dict "rules" $rules) (omit $group "rules")) }}{{ end -}}
{{- end -}}
{{- if $groups }}{{ $_ := set $files (base $path | trimSuffix ".yaml") (dict "groups" $groups) }}{{ end -}}
{{- end -}}
{{- end -}}
{{- range $alert, $_ := $values.alerts -}}
{{- if not (has $alert $known) -}}
{{- fail (printf "monitoring.alerts names %s, and there is no such alert. There are: %s." $alert ($known | sortAlpha | join ", ")) -}}
{{- end -}}
{{- end -}}
{{- with include "millrace.extraRuleGroups" . | fromJsonArray }}{{ $_ := set $files "extra" (dict "groups" .) }}{{ end -}}
{{- toJson $files -}}
{{- end -}}

{{- /* monitoring.extraRules with the labels that lead an alert to its receivers; their expressions stay as they are. */ -}}
{{- define "millrace.extraRuleGroups" -}}
{{- $groups := list -}}
{{- $names := list -}}
{{- range $i, $group := .Values.monitoring.extraRules -}}
{{- $where := printf "monitoring.extraRules[%d]" $i -}}
{{- if not (and (kindIs "string" .name) .name (kindIs "slice" .rules)) -}}
{{- fail (printf "%s is not a group of rules. Give it `name` and `rules`, as in Prometheus's rule files." $where) -}}
{{- end -}}
{{- if or (has .name $names) (hasPrefix "millrace." .name) -}}
{{- fail (printf "%s has the name %s, which another group has. Give it its own." $where .name) -}}
{{- end -}}
{{- $names = append $names .name -}}
{{- $rules := list -}}
{{- range $j, $rule := .rules -}}
{{- $named := printf "%s.rules[%d] (%v of group %s)" $where $j ($rule.alert | default $rule.record | default "without a name") $group.name -}}
{{- if eq (empty $rule.alert) (empty $rule.record) -}}
{{- fail (printf "%s has to have either `alert` or `record`." $named) -}}
{{- end -}}
{{- if not (and (kindIs "string" $rule.expr) $rule.expr) -}}
{{- fail (printf "%s has no expression. Set `expr` to PromQL." $named) -}}
{{- end -}}
{{- with omit $rule "alert" "record" "expr" "for" "keep_firing_for" "labels" "annotations" -}}
{{- fail (printf "%s has %s, which Prometheus does not know." $named (keys . | sortAlpha | join ", ")) -}}
{{- end -}}
{{- range $key := list "for" "keep_firing_for" -}}
{{- if and (hasKey $rule $key) (not (regexMatch "^([0-9]+(ms|[smhdwy]))+$" (toString (get $rule $key)))) -}}
{{- fail (printf "%s has `%s: %v`, which is no duration. Write 5m or 90s." $named $key (get $rule $key)) -}}
{{- end -}}
{{- end -}}
{{- $severity := get ($rule.labels | default dict) "severity" -}}
{{- if and $rule.alert (not (has $severity (list "critical" "warning" "info" "none"))) -}}
{{- fail (printf "%s has the severity %q, by which nobody is told. Set labels.severity to critical, warning, info or none." $named $severity) -}}
{{- end -}}
{{- $own := include "millrace.identity" $ | fromJson -}}
{{- $rules = append $rules (merge (dict "labels" (merge (dict) ($rule.labels | default dict) $own)) $rule) -}}
{{- end -}}
{{- $groups = append $groups (merge (dict "rules" $rules) $group) -}}
{{- end -}}
{{- toJson $groups -}}
{{- end -}}

{{- /* Who is told of which alert, in the words of the operator's AlertmanagerConfig; `millrace.alertmanagerYaml` says the
     same in those of alertmanager.yml. A receiver is there as soon as its values name a place. */ -}}
{{- define "millrace.alertmanagerSpec" -}}
{{- $values := .Values.monitoring.alertmanager }}
{{- $critical := list (dict "name" "severity" "matchType" "=" "value" "critical") }}
{{- $serious := list (dict "name" "severity" "matchType" "=~" "value" "critical|warning") }}
{{- $own := list }}
{{- range $name, $value := include "millrace.identity" . | fromJson }}
{{- $own = append $own (dict "name" $name "matchType" "=" "value" $value) }}
{{- end }}
{{- $secret := dict }}
{{- range $for, $key := $values.secretKeys }}{{ $_ := set $secret $for (dict "name" $values.existingSecret "key" $key) }}{{ end }}
{{- $receivers := list (dict "name" "console" "webhookConfigs" (list (dict
      "url" (printf "http://%s-exporter.%s.svc:9464/alerts" (include "millrace.fullname" .) .Release.Namespace) "sendResolved" true))) }}
{{- $watchdog := dict "receiver" "null" }}
{{- $routes := list }}
{{- with $values.watchdog }}
{{- if or .url .urlFromSecret }}
{{- $watchdog = dict "receiver" "watchdog" "groupWait" "0s" "groupInterval" "1m" "repeatInterval" "5m" }}
{{- $place := .urlFromSecret | ternary (dict "urlSecret" $secret.watchdogUrl) (dict "url" .url) }}
{{- $receivers = append $receivers (dict "name" "watchdog" "webhookConfigs" (list (merge $place (dict "sendResolved" false)))) }}
{{- else }}
{{- $receivers = append $receivers (dict "name" "null") }}
{{- end }}
{{- $routes = append $routes (merge (dict "matchers" (list (dict "name" "alertname" "matchType" "=" "value" "MillraceWatchdog"))) $watchdog) }}
{{- end }}
{{- if $values.pagerduty.enabled }}
{{- $receivers = append $receivers (dict "name" "pagerduty" "pagerdutyConfigs" (list (dict "routingKey" $secret.pagerdutyKey "sendResolved" true))) }}
{{- $routes = append $routes (dict "receiver" "pagerduty" "matchers" $critical "continue" true) }}
{{- end }}
{{- with $values.email }}{{ if .to }}
{{- $email := dict "to" .to "from" .from "smarthost" .smarthost "requireTLS" .requireTLS "sendResolved" true }}
{{- if .username }}{{ $_ := merge $email (dict "authUsername" .username "authPassword" $secret.emailPassword) }}{{ end }}
{{- $receivers = append $receivers (dict "name" "email" "emailConfigs" (list $email)) }}
{{- end }}{{ end }}
{{- with $values.webhook }}{{ if or .url .urlFromSecret }}
{{- $webhook := merge (dict "sendResolved" true) (.urlFromSecret | ternary (dict "urlSecret" $secret.webhookUrl) (dict "url" .url)) }}
{{- if .tokenFromSecret }}{{ $_ := set $webhook "httpConfig" (dict "authorization" (dict "credentials" $secret.webhookToken)) }}{{ end }}
{{- $receivers = append $receivers (dict "name" "webhook" "webhookConfigs" (list $webhook)) }}
{{- end }}{{ end }}
{{- if $values.slack.channel }}
{{- $slack := dict "channel" $values.slack.channel "apiURL" $secret.slackUrl "sendResolved" true }}
{{- $_ := merge $slack (include "millrace.slackWords" . | fromYaml) }}
{{- $receivers = append $receivers (dict "name" "slack" "slackConfigs" (list $slack)) }}
{{- end }}
{{- if $values.msteams.enabled }}
{{- $receivers = append $receivers (dict "name" "msteams" "msteamsv2Configs" (list (dict "webhookURL" $secret.msteamsUrl "sendResolved" true))) }}
{{- end }}
{{- range $receivers }}{{ if has .name (list "email" "webhook" "slack" "msteams") }}
{{- $routes = append $routes (dict "receiver" .name "matchers" $serious "continue" true) }}
{{- end }}{{ end }}
{{- $routes = append $routes (dict "receiver" "console" "matchers" (list (dict "name" "severity" "matchType" "=~" "value" "critical|warning|info"))) -}}
route:
  receiver: console
  # Nobody else's alerts. Of the namespace the operator sees to this itself, unless its Alertmanager is told not to.
  matchers: {{- toYaml $own | nindent 4 }}
  groupBy: [alertname, code_location, job_name] # not `job`, which is Prometheus's own
  groupWait: {{ $values.groupWait }}
  groupInterval: {{ $values.groupInterval }}
  repeatInterval: {{ $values.repeatInterval }}
  routes: {{- toYaml $routes | nindent 4 }}
receivers: {{- toYaml $receivers | nindent 2 }}
inhibitRules:
  {{- range include "millrace.inhibitions" . | fromYamlArray }}
  {{- $rule := dict "sourceMatch" (concat $own .sourceMatch) "targetMatch" (concat $own .targetMatch) }}
  - {{- merge $rule (omit . "sourceMatch" "targetMatch") | toYaml | nindent 4 }}
  {{- end }}
{{- end -}}

{{- /* What is not told because something else is: both sides are of this release, which `millrace.alertmanagerSpec` adds. */ -}}
{{- define "millrace.inhibitions" -}}
# The same trouble, less of it.
- sourceMatch: [{ name: severity, matchType: "=", value: critical }]
  targetMatch: [{ name: severity, matchType: "=~", value: warning|info }]
  equal: [alertname, code_location, job_name, volume, host]
# Without database or exporter every figure is an old one.
- sourceMatch:
    - { name: alertname, matchType: "=", value: MillraceServiceUnavailable }
    - { name: service, matchType: "=~", value: database|exporter }
  targetMatch:
    - { name: alertname, matchType: "=~", value: Millrace.+ }
    - { name: alertname, matchType: "!~", value: MillraceServiceUnavailable|MillraceWatchdog }
# The webserver answers from the same database.
- sourceMatch:
    - { name: alertname, matchType: "=", value: MillraceServiceUnavailable }
    - { name: service, matchType: "=", value: database }
  targetMatch:
    - { name: alertname, matchType: "=", value: MillraceServiceUnavailable }
    - { name: service, matchType: "=", value: webserver }
- sourceMatch: [{ name: alertname, matchType: "=", value: MillraceCodeLocationBroken }]
  targetMatch:
    - { name: alertname, matchType: "=~", value: MillraceScheduleMissed|MillraceTicksFailing|MillraceRunStuckQueued|MillraceRunStuckStarting|MillraceRunLaunchFailing }
  equal: [code_location]
# Of the daemon's threads one makes the ticks, one launches what is queued, one ends what does not start.
- sourceMatch:
    - { name: alertname, matchType: "=", value: MillraceDaemonStale }
    - { name: daemon_type, matchType: "=", value: SCHEDULER }
  targetMatch: [{ name: alertname, matchType: "=", value: MillraceScheduleMissed }]
- sourceMatch:
    - { name: alertname, matchType: "=", value: MillraceDaemonStale }
    - { name: daemon_type, matchType: "=~", value: QUEUED_RUN_COORDINATOR|MONITORING }
  targetMatch: [{ name: alertname, matchType: "=~", value: MillraceRunStuckQueued|MillraceRunStuckStarting }]
{{- end -}}

{{- /* Slack's own words for a group of alerts are their labels. The braces are Alertmanager's. */ -}}
{{- define "millrace.slackWords" -}}
titleLink: {{ `{{ with .CommonAnnotations.runbook_url }}{{ . }}{{ else }}{{ template "slack.default.titlelink" . }}{{ end }}` | quote }}
text: {{ `{{ range .Alerts }}{{ .Annotations.description }}
{{ end }}{{ with .CommonAnnotations.runbook }}Runbook: {{ . }}{{ end }}` | quote }}
{{- end -}}

{{- /* alertmanager.yml: the same names in snake case, matchers as texts, and a key of a Secret as the file it is mounted
     at, which is where the operator mounts the `secrets` of an Alertmanager too. The first route of such a file takes
     whatever comes: Alertmanager admits no matchers there. */ -}}
{{- define "millrace.alertmanagerYaml" -}}
{{- $spec := include "millrace.alertmanagerSpec" . | fromYaml -}}
{{- $_ := unset $spec.route "matchers" -}}
{{- (include "millrace.asPlainFile" $spec | fromJson).it | toYaml -}}
{{- end -}}

{{- define "millrace.asPlainFile" -}}
{{- $matchers := dict "matchers" "matchers" "sourceMatch" "source_matchers" "targetMatch" "target_matchers" -}}
{{- $it := . -}}
{{- if kindIs "map" . -}}
{{- $it = dict -}}
{{- range $key, $value := . -}}
{{- $name := snakecase $key | replace "msteamsv_2" "msteamsv2" -}}
{{- if and (kindIs "map" $value) (hasKey $value "key") -}}
{{- $_ := set $it (printf "%s_file" (trimSuffix "_secret" $name)) (printf "/etc/alertmanager/secrets/%s/%s" $value.name $value.key) -}}
{{- else if hasKey $matchers $key -}}
{{- $texts := list -}}
{{- range $value }}{{ $texts = append $texts (printf "%s%s%q" .name .matchType .value) }}{{ end -}}
{{- $_ := set $it (get $matchers $key) $texts -}}
{{- else -}}
{{- $_ := set $it $name (include "millrace.asPlainFile" $value | fromJson).it -}}
{{- end -}}
{{- end -}}
{{- else if kindIs "slice" . -}}
{{- $it = list -}}
{{- range . }}{{ $it = append $it (include "millrace.asPlainFile" . | fromJson).it }}{{ end -}}
{{- end -}}
{{- toJson (dict "it" $it) -}}
{{- end -}}

{{- /* The keys of monitoring.alertmanager.existingSecret that the receivers read, separated by spaces. */ -}}
{{- define "millrace.alertmanagerKeys" -}}
{{- with .Values.monitoring.alertmanager }}
{{- $used := dict "emailPassword" .email.username "webhookUrl" .webhook.urlFromSecret "webhookToken" .webhook.tokenFromSecret
      "slackUrl" .slack.channel "msteamsUrl" .msteams.enabled "pagerdutyKey" .pagerduty.enabled "watchdogUrl" .watchdog.urlFromSecret }}
{{- $keys := list }}
{{- range $for, $is := $used }}{{ if $is }}{{ $keys = append $keys (get $.Values.monitoring.alertmanager.secretKeys $for) }}{{ end }}{{ end }}
{{- join " " $keys }}
{{- end }}
{{- end -}}
