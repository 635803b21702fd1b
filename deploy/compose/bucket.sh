# The bucket and two users of it: one reads and writes, one reads. `bucket` of docker-compose.yml runs
# this in the store's image, which has the store's client and a shell, and little else, at each start:
# secrets that changed are taken.
set -eu
umask 077

# Keys go by standard input: arguments are to be seen in the list of processes.
printf '%s\n' "$MINIO_ROOT_USER" "$MINIO_ROOT_PASSWORD" | mc alias set store http://store:9000
mc mb --ignore-existing "store/$BUCKET"

user() { # KEY SECRET POLICY, what it may do with the bucket, and with objects in it
  bucket="{\"Effect\": \"Allow\", \"Action\": [$4], \"Resource\": [\"arn:aws:s3:::$BUCKET\"]}"
  objects="{\"Effect\": \"Allow\", \"Action\": [$5], \"Resource\": [\"arn:aws:s3:::$BUCKET/*\"]}"
  printf '{"Version": "2012-10-17", "Statement": [%s, %s]}\n' "$bucket" "$objects" > "/tmp/$3.json"
  mc admin policy create store "$3" "/tmp/$3.json"
  printf '%s\n' "$1" "$2" | mc admin user add store
  # Some clients call it an error that the user has it already, as at each start but the first.
  mc admin policy attach store "$3" --user "$1" || case "$(mc admin user info store "$1")" in
    *"$3"*) ;;
    *) exit 1 ;;
  esac
}

look='"s3:GetBucketLocation", "s3:ListBucket"'
change='"s3:PutObject", "s3:DeleteObject", "s3:AbortMultipartUpload"'
user "$WRITER" "$WRITER_PASSWORD" seit-write "$look" "\"s3:GetObject\", $change"
user "$READER" "$READER_PASSWORD" seit-read "$look" '"s3:GetObject"'
