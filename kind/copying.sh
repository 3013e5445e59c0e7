# What kind/backup and kind/restore share; `namespace` and `here` are set.

# has KIND NAME: whether it is there.  Where nobody answers, nothing is copied.
has() {
  local found
  found=$(kubectl get -n "$namespace" "$1" "$2" --ignore-not-found -o name) || exit 69
  [ -n "$found" ]
}
# noted NAME: what the chart wrote down for us.
noted() { kubectl get configmap -n "$namespace" platform-provision -o "jsonpath={.metadata.annotations.retrain/$1}"; }
sha256() { if command -v sha256sum >/dev/null; then sha256sum "$@"; else shasum -a 256 "$@"; fi; }
size() { echo "$(wc -c < "$1" | awk '{print int($1 / 1024)}') KiB"; }

# postgres [-i] COMMAND...: in the database's own pod, as its administrator over the socket, so without a password.
postgres() {
  local stdin=; [ "$1" != -i ] || { stdin=-i; shift; }
  kubectl exec ${stdin:+-i} -n "$namespace" statefulset/postgres -c postgres -- "$@"
}

# with_objects backup|restore: objects.py in a pod that reaches MinIO as its administrator.
with_objects() (
  image=$(noted image) pull_secrets=$(noted pull-secrets)
  pod=copying-$RANDOM$RANDOM
  trap 'kubectl delete pod -n "$namespace" "$pod" --wait=false --ignore-not-found >/dev/null' EXIT
  # It ends by itself, should nobody be there to end it.
  kubectl apply -n "$namespace" -f - >/dev/null <<YAML
apiVersion: v1
kind: Pod
metadata: {name: $pod, labels: {app.kubernetes.io/name: platform-provision}}
spec:
  restartPolicy: Never
  activeDeadlineSeconds: 14400
  automountServiceAccountToken: false
  enableServiceLinks: false
  imagePullSecrets: $pull_secrets
  securityContext: {runAsNonRoot: true, runAsUser: 65532, seccompProfile: {type: RuntimeDefault}}
  containers:
    - name: main
      image: $image
      command: [sleep, "14400"]
      env:
        - {name: S3_ENDPOINT, value: "http://minio.$namespace:9000"}
        - {name: S3_ADMIN, valueFrom: {secretKeyRef: {name: platform-minio, key: user}}}
        - {name: S3_ADMIN_PASSWORD, valueFrom: {secretKeyRef: {name: platform-minio, key: password}}}
      resources: {requests: {cpu: 50m, memory: 128Mi}, limits: {memory: 512Mi}}
      securityContext: {allowPrivilegeEscalation: false, readOnlyRootFilesystem: true, capabilities: {drop: [ALL]}}
      volumeMounts: [{name: tmp, mountPath: /tmp}]
  volumes: [{name: tmp, emptyDir: {}}]
YAML
  kubectl wait -n "$namespace" "pod/$pod" --for=condition=Ready --timeout=5m >/dev/null
  kubectl exec -i -n "$namespace" "$pod" -- python -c "$(cat "$here/objects.py")" "$1"
)
