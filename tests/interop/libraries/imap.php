<?php
// PHP's imap extension, which is the c-client library: list, fetch everything, delete message 1.
[, $security, $port, $ca, $user, $password, $folder] = $argv;
$flags = ["tls" => "/ssl", "stls" => "/tls", "clear" => "/notls"][$security];
$mailbox = imap_open("{localhost:$port/pop3$flags}INBOX", $user, $password);
if ($mailbox === false) {
    fwrite(STDERR, implode("\n", imap_errors() ?: []));
    exit(1);
}
for ($number = 1; $number <= imap_num_msg($mailbox); $number++) {
    $size = imap_fetch_overview($mailbox, "$number")[0]->size;
    echo "$number $size\n";
    $message = imap_fetchheader($mailbox, $number) . imap_body($mailbox, $number);
    file_put_contents("$folder/$number", $message);
}
imap_delete($mailbox, "1");
imap_close($mailbox, CL_EXPUNGE);
