# Perl's Net::POP3: list, fetch everything, delete message 1.
use strict;
use warnings;
use Net::POP3;

my ($security, $port, $ca, $user, $password, $folder) = @ARGV;
my %tls = (SSL_ca_file => $ca, SSL_verifycn_name => 'localhost');
my $pop = Net::POP3->new('localhost', Port => $port, $security eq 'tls' ? (SSL => 1, %tls) : ())
    or die "no greeting: $@";
if ($security eq 'stls') { $pop->starttls(%tls) or die 'no STLS: ' . $pop->message }
defined $pop->login($user, $password) or die 'no login: ' . $pop->message;
my $sizes = $pop->list;
for my $number (sort { $a <=> $b } keys %$sizes) {
    print "$number $sizes->{$number}\n";
    my $lines = $pop->get($number) or die 'no message: ' . $pop->message;
    open my $file, '>:raw', "$folder/$number" or die $!;
    print $file @$lines;
    close $file or die $!;
}
$pop->delete(1) or die 'not deleted: ' . $pop->message;
$pop->quit or die 'no end: ' . $pop->message;
