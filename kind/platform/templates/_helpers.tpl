{{/* The contracts file, as an object; without the signer of heads and without retention where they are off. */}}
{{- define "contracts" -}}
{{- $contracts := .Files.Get "contracts.yaml" | fromYaml -}}
{{- if not .Values.audit.enabled }}{{ $_ := unset $contracts.stages $contracts.names.audit }}{{ end -}}
{{- if not .Values.retention.enabled }}{{ $_ := unset $contracts.stages $contracts.names.retention }}{{ end -}}
{{ toYaml $contracts }}
{{- end -}}

{{- define "workflows" -}}{{ .Values.namespaces.workflows | default .Release.Namespace }}{{- end -}}
{{- define "serving" -}}{{ .Values.namespaces.serving | default .Release.Namespace }}{{- end -}}

{{/* Where a stage's account, Secret and pods are: root, stage, access. */}}
{{- define "stageNamespace" -}}
{{- $root := index . 0 -}}
{{- if eq (index . 1) "serving" }}{{ include "serving" $root }}{{ else if (index . 2).signs }}{{ $root.Release.Namespace }}{{ else }}{{ include "workflows" $root }}{{ end -}}
{{- end -}}

{{- define "labels" -}}
app.kubernetes.io/part-of: retrain
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end -}}

{{/* A bucket or prefix of the contracts, under the names that the values give the buckets. */}}
{{- define "bucket" -}}
{{- $root := index . 0 -}}
{{- $path := index . 1 -}}
{{- $parts := splitList "/" $path -}}
{{- $name := get $root.Values.buckets (first $parts | trimPrefix "retrain-") -}}
{{- prepend (rest $parts) $name | join "/" -}}
{{- end -}}

{{/* All passwords that are ours to make: those of an earlier install, else new ones; the same in one render. */}}
{{- define "passwords" -}}
{{- if not (hasKey .Values "passwords") -}}
{{- $kept := (lookup "v1" "Secret" .Release.Namespace "platform-passwords").data | default dict -}}
{{- $all := dict -}}
{{- $contracts := include "contracts" . | fromYaml -}}
{{- $names := list "postgres" "minio" "mlflow-database" "mlflow-admin" "mlflow-session" "argo" "webhook" $contracts.ledger.owner $contracts.ledger.reader $contracts.ledger.writer -}}
{{- range $stage := keys $contracts.stages | sortAlpha -}}
{{- $names = concat $names (list (printf "s3-%s" $stage) (printf "mlflow-%s" $stage)) -}}
{{- end -}}
{{- range $name := $names -}}
{{- $_ := set $all $name (get $kept $name | b64dec | default (randAlphaNum 32)) -}}
{{- end -}}
{{- $_ := set .Values "passwords" $all -}}
{{- end -}}
{{ toYaml .Values.passwords }}
{{- end -}}

{{/* The key of the ledger's heads, in the signer's Secret alone: that of an earlier install, else a new one. */}}
{{- define "auditKey" -}}
{{- $root := index . 0 -}}
{{- $kept := (lookup "v1" "Secret" $root.Release.Namespace (index . 1)).data | default dict -}}
{{ get $kept (index . 2) | b64dec | default (genPrivateKey "ed25519") }}
{{- end -}}

{{/* Where signed heads are kept; empty where the signer is off. */}}
{{- define "auditHeads" -}}
{{- if .Values.audit.enabled }}s3://{{ .Values.buckets.audit }}/heads{{ end -}}
{{- end -}}

{{/* The key that models are signed by, in register's Secret alone: that of an earlier install, else a new one, also at an
     upgrade; the same in one render. */}}
{{- define "signingKey" -}}
{{- if not (hasKey .Values "signingKey") -}}
{{- $contracts := include "contracts" . | fromYaml -}}
{{- range $stage, $access := $contracts.stages -}}
{{- with $access.secrets.signing_key -}}
{{- $name := printf $contracts.names.stageSecret $stage -}}
{{- $kept := (lookup "v1" "Secret" (include "stageNamespace" (list $ $stage $access)) $name).data | default dict -}}
{{- $_ := set $.Values "signingKey" (get $kept . | b64dec | default (genPrivateKey "ecdsa")) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{ .Values.signingKey }}
{{- end -}}

{{/* Its public half.  A P-256 key in SEC 1 DER ends with its public point: 64 bytes from byte 57, which is base64 from
     character 76.  What stands before them is the head of every such public key. */}}
{{- define "modelKey" -}}
{{- $lines := include "signingKey" . | trim | splitList "\n" -}}
{{- $der := without $lines (first $lines) (last $lines) | join "" -}}
MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAE{{ substr 76 -1 $der }}
{{- end -}}

{{/* What MLflow's Secret holds: ours, or what is there already when others make it. */}}
{{- define "mlflow.secret" -}}
{{- if .Values.secrets.create }}
{{- $passwords := include "passwords" . | fromYaml }}
{{- $database := printf "postgresql+psycopg://mlflow:%s@%s:%v" (get $passwords "mlflow-database") (include "postgresql.host" .) .Values.postgresql.port }}
backend: {{ printf "%s/mlflow?sslmode=%s" $database .Values.postgresql.sslmode | b64enc }}
auth.ini: {{ printf "[mlflow]\ndefault_permission = READ\ndatabase_uri = %s/mlflow_auth?sslmode=%s\nadmin_username = admin\ngrant_default_workspace_access = true\nauthorization_function = mlflow.server.auth:authenticate_request_basic_auth\nauth_cache_ttl_seconds = 30\n" $database .Values.postgresql.sslmode | b64enc }}
admin: {{ get $passwords "mlflow-admin" | b64enc }}
session: {{ get $passwords "mlflow-session" | b64enc }}
{{- else }}
{{- (lookup "v1" "Secret" .Release.Namespace "platform-mlflow").data | default dict | toYaml }}
{{- end }}
{{- end -}}

{{- define "ledgerUrl" -}}
{{- $root := index . 0 -}}
{{- $role := index . 1 -}}
{{- $passwords := include "passwords" $root | fromYaml -}}
postgresql://{{ $role }}:{{ get $passwords $role }}@{{ include "postgresql.host" $root }}:{{ $root.Values.postgresql.port }}/retrain_ledger?sslmode={{ $root.Values.postgresql.sslmode }}
{{- end -}}

{{/* Where the components answer; with the namespace, since those who ask may live in another. */}}
{{- define "postgresql.host" -}}
{{- if .Values.postgresql.enabled }}postgres.{{ .Release.Namespace }}{{ else }}{{ .Values.postgresql.host }}{{ end -}}
{{- end -}}
{{- define "s3.endpoint" -}}
{{- if .Values.minio.enabled }}http://minio.{{ .Release.Namespace }}:9000{{ else }}{{ .Values.minio.endpoint }}{{ end -}}
{{- end -}}
{{- define "prometheus.url" -}}
{{- if .Values.prometheus.enabled }}http://prometheus.{{ .Release.Namespace }}:9090{{ else }}{{ .Values.prometheus.url }}{{ end -}}
{{- end -}}
{{- define "mlflow.url" -}}
{{- if .Values.mlflow.enabled }}http://mlflow.{{ .Release.Namespace }}:5000{{ else }}{{ required "mlflow.url" .Values.mlflow.url }}{{ end -}}
{{- end -}}
{{- define "mlflow.ingressHost" -}}{{ required "mlflow.ingress.host: the name under which people open MLflow" .Values.mlflow.ingress.host }}{{- end -}}
{{- define "mlflow.allowedHosts" -}}
{{- $hosts := list "mlflow" (printf "mlflow.%s" .Release.Namespace) (printf "mlflow.%s.svc" .Release.Namespace) (printf "mlflow.%s.svc.cluster.local" .Release.Namespace) -}}
{{- $all := list -}}
{{- if .Values.mlflow.ingress.enabled }}{{ $hosts = append $hosts (include "mlflow.ingressHost" .) }}{{ end -}}
{{- range concat $hosts .Values.mlflow.allowedHosts | uniq -}}
{{- $all = concat $all (list . (printf "%s:*" .)) -}}
{{- end -}}
{{- join "," $all -}}
{{- end -}}

{{/* What a component's pods are called, where they listen, and whether they are ours. */}}
{{- define "components" -}}
store: {name: minio, port: 9000, ours: {{ .Values.minio.enabled }}}
tracking: {name: mlflow, port: 5000, ours: {{ .Values.mlflow.enabled }}}
ledger: {name: postgres, port: 5432, ours: {{ .Values.postgresql.enabled }}}
{{- end -}}
{{/* NetworkPolicy egress rules behind a need, as JSON: what the values say, and our own pods where we run the component.
     Arguments: root, need. */}}
{{- define "egress" -}}
{{- $root := index . 0 -}}
{{- $list := get $root.Values.networkPolicies (index . 1) | default list -}}
{{- with get (include "components" $root | fromYaml) (index . 1) -}}
{{- if .ours -}}
{{- $pods := dict "podSelector" (dict "matchLabels" (dict "app.kubernetes.io/name" .name)) "namespaceSelector" (dict "matchLabels" (dict "kubernetes.io/metadata.name" $root.Release.Namespace)) -}}
{{- $list = append $list (dict "to" (list $pods) "ports" (list (dict "port" .port "protocol" "TCP"))) -}}
{{- end -}}
{{- end -}}
{{- toJson $list -}}
{{- end -}}

{{/* What Pod Security `restricted` asks of a pod and of its containers. */}}
{{- define "podSecurity" -}}
runAsNonRoot: true
runAsUser: {{ . }}
runAsGroup: {{ . }}
fsGroup: {{ . }}
fsGroupChangePolicy: OnRootMismatch
seccompProfile: {type: RuntimeDefault}
{{- end -}}
{{/* Arguments: root, user id, mount path. */}}
{{- define "takeOwnership" -}}
{{- $root := index . 0 -}}
{{- if $root.Values.volumes.takeOwnership }}
initContainers:
  - name: take-ownership
    image: {{ $root.Values.images.mlflow }}
    command: [python, -c, "import os; os.chown('{{ index . 2 }}', {{ index . 1 }}, {{ index . 1 }})"]
    resources: {requests: {cpu: 10m, memory: 32Mi}, limits: {memory: 128Mi}}
    securityContext:
      runAsUser: 0
      runAsGroup: 0
      runAsNonRoot: false
      allowPrivilegeEscalation: false
      readOnlyRootFilesystem: true
      capabilities: {drop: [ALL], add: [CHOWN]}
    volumeMounts:
      - {name: data, mountPath: {{ index . 2 }}}
{{- end }}
{{- end -}}
{{- define "containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end -}}
